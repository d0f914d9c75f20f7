"""Operations on files and batches."""

from __future__ import annotations

from gateway.access import Scope
from gateway.door.openapi.operation import IDEMPOTENCY, PAGING, Operation, Parameter

OPERATIONS = (
    Operation(
        "POST",
        "/v1/files",
        "createFile",
        "Upload a file",
        Scope.SUBMIT,
        "FileObject",
        body="FileForm",
        body_type="multipart/form-data",
    ),
    Operation(
        "GET",
        "/v1/files",
        "listFiles",
        "List files",
        Scope.READ,
        "FileList",
        parameters=(
            Parameter("limit", "The maximum number of files.", {"type": "integer", "minimum": 1, "maximum": 10_000}),
            *PAGING[1:],
            Parameter("purpose", "Only files with this purpose."),
        ),
    ),
    Operation("GET", "/v1/files/{file_id}", "getFile", "Read a file's description", Scope.READ, "FileObject"),
    Operation("DELETE", "/v1/files/{file_id}", "deleteFile", "Delete a file", Scope.CANCEL, "Deleted"),
    Operation(
        "GET",
        "/v1/files/{file_id}/content",
        "getFileContent",
        "Download a file",
        Scope.READ,
        parameters=(Parameter("Range", "The bytes to send, such as `bytes=0-1023`.", place="header"),),
        answer_type="application/octet-stream",
    ),
    Operation(
        "POST",
        "/v1/uploads",
        "createUpload",
        "Begin a file that arrives in parts",
        Scope.SUBMIT,
        "UploadObject",
        about="It expires after an hour.",
        body="UploadRequest",
    ),
    Operation(
        "POST",
        "/v1/uploads/{upload_id}/parts",
        "createUploadPart",
        "Upload a part",
        Scope.SUBMIT,
        "UploadPart",
        about="A part has 64 MiB at most; parts may arrive at the same time and in any order.",
        body="PartForm",
        body_type="multipart/form-data",
    ),
    Operation(
        "POST",
        "/v1/uploads/{upload_id}/complete",
        "completeUpload",
        "Join the parts to a file",
        Scope.SUBMIT,
        "UploadObject",
        about="A repeat with the same parts gets the same file.",
        body="UploadCompletion",
    ),
    Operation(
        "POST", "/v1/uploads/{upload_id}/cancel", "cancelUpload", "Cancel an upload", Scope.CANCEL, "UploadObject"
    ),
    Operation(
        "POST",
        "/v1/batches",
        "createBatch",
        "Create a batch from an uploaded file",
        Scope.SUBMIT,
        "BatchObject",
        parameters=(IDEMPOTENCY,),
        body="BatchRequest",
    ),
    Operation("GET", "/v1/batches", "listBatches", "List batches", Scope.READ, "BatchList", parameters=PAGING),
    Operation("GET", "/v1/batches/{batch_id}", "getBatch", "Read a batch", Scope.READ, "BatchObject"),
    Operation("POST", "/v1/batches/{batch_id}/cancel", "cancelBatch", "Cancel a batch", Scope.CANCEL, "BatchObject"),
)
