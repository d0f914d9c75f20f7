"""Contents of files: a folder, or S3-compatible storage.

`base` has the protocol and its errors, `folder` and `s3` implement it, and `settings` chooses one.
The package itself imports nothing, so that commands read `settings` without a storage library.
"""
