"""Methods that are more than a combination of parts, one small file each."""
