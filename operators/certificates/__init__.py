"""A private certificate authority for the front door: certificates of servers and clients, renewal and revocation.

`operations` has the operations on an authority's directory. Below `operations` are `files` and `index` (the directory),
`authority`, `issuing` and `revocation` (pure, on cryptography), `names` and `lifetimes` (the rules).
"""

from operators.certificates.errors import (
    AuthorityUnusable,
    CertificateExists,
    CertificatesError,
    CertificateUnknown,
    InputRefused,
)
from operators.certificates.index import Index, IssuedCertificate
from operators.certificates.issuing import Leaf, LeafKind
from operators.certificates.lifetimes import State, authority_state
from operators.certificates.notices import Contents, crl_problem, warnings_of
from operators.certificates.operations import (
    Issued,
    contents,
    init,
    issue,
    renew,
    renew_crl,
    revoke,
)
from operators.certificates.revocation import Reason

__all__ = [
    "AuthorityUnusable",
    "CertificateExists",
    "CertificateUnknown",
    "CertificatesError",
    "Contents",
    "Index",
    "InputRefused",
    "Issued",
    "IssuedCertificate",
    "Leaf",
    "LeafKind",
    "Reason",
    "State",
    "authority_state",
    "contents",
    "crl_problem",
    "init",
    "issue",
    "renew",
    "renew_crl",
    "revoke",
    "warnings_of",
]
