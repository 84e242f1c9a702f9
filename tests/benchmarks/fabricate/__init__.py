"""Small files in the official formats, so that loaders are tested without the real data."""
