"""Why a file could not be fetched, in a sentence.

The texts of the libraries may hold keys, tokens and signed addresses; so only the types of their errors and the server's status
are looked at.
"""

import errno


class FetchError(Exception):
    """Why a file cannot be had, as the end of a sentence; ``transient``: another attempt may help."""

    def __init__(self, reason: str, *, transient: bool = False) -> None:
        super().__init__(reason)
        self.transient = transient


_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "TokenRetrievalError"} | {
    "ProfileNotFound",
    "DefaultCredentialsError",
    "RefreshError",
}
_TIMEOUTS = {"TimeoutError", "ConnectTimeoutError", "ReadTimeoutError", "Timeout"}
_UNREACHABLE = {"ClientConnectorError", "EndpointConnectionError", "ConnectionRefusedError", "gaierror", "SSLError"}
_UNTRUSTED = {"SSLCertVerificationError", "ClientConnectorCertificateError"}
_BROKEN_OFF = {"ClientPayloadError", "ServerDisconnectedError", "ClientOSError", "ConnectionError", "IncompleteReadError"} | {
    "HTTPClientError",
    "ResponseStreamingError",
    "ConnectionClosedError",
}
"""Names of types, of botocore, aiohttp, google.auth, requests and Python, so that none of these has to be there."""


def explain(error: Exception, credentials: str, silence: str) -> FetchError:
    """What an error of a library means, without a word of its text.

    Args:
        error: what it raised.
        credentials: where such URLs take theirs from.
        silence: what is said of a server that does not answer in time.
    """
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    known = next((link for link in chain if isinstance(link, FetchError)), None)
    if known:
        return known
    names = {kind.__name__ for link in chain for kind in type(link).__mro__}
    # aiohttp calls it status, gcsfs code
    found = (getattr(link, "status", None) if hasattr(link, "status") else getattr(link, "code", None) for link in chain)
    status = next((status for status in found if isinstance(status, int) and 400 <= status < 600), None)
    if names & _CREDENTIALS:
        return FetchError(f"no credentials were found: set {credentials}")
    if "PermissionError" in names or status in (401, 403):
        return FetchError(f"access is denied: expected credentials that allow it: {credentials}")
    if names & _TIMEOUTS:
        return FetchError(silence, transient=True)
    if names & _UNTRUSTED:
        return FetchError(
            "the server's certificate is not trusted here: SSL_CERT_FILE (s3: AWS_CA_BUNDLE) names a private authority"
        )
    if names & _UNREACHABLE:
        return FetchError("the server cannot be reached: is there a network, and is the host's name right?", transient=True)
    if names & _BROKEN_OFF:
        return FetchError("the connection broke off", transient=True)
    if status is not None and status not in (404, 410):
        return FetchError(f"the server answered with status {status}", transient=status >= 500 or status == 429)
    if "FileNotFoundError" in names:
        return FetchError("there is no such bucket, folder or object")
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return FetchError("no room is left for temporary files (TMPDIR)")
    transient = isinstance(error, OSError)
    return FetchError(f"it cannot be fetched ({type(error).__name__})", transient=transient)
