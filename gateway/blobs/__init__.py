"""Contents of files: a folder, or S3-compatible storage."""
