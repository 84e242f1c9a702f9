#!/usr/bin/env bash
# Debian packages that the system tests start services from. Nothing happens where they are there.
set -euo pipefail
missing=()
for package in slurm-wlm munge postgresql chromium; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q "ok installed" || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" -ne 0 ]; then
  echo "system tests need the Debian packages ${missing[*]}: install them as root first" >&2
  exit 2
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
# No service is started by installing it; the tests start their own on loopback.
RUNLEVEL=1 apt-get install -y -q --no-install-recommends "${missing[@]}"
