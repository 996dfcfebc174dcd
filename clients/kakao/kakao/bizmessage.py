"""One message over Kakao's BizMessage API (알림톡): what is posted, and what its answers mean.

    POST <endpoint>/v2/send/kakao
    authorization: Bearer <token>
    idempotency-key: <key>
    {"message_type": "AT", "sender_key": …, "cid": <key>, "template_code": …, "phone_number": …, "sender_no": …,
     "message": …, "fall_back_yn": false}

The path, the bearer token and the body's fields are those of Kakao i Connect Message; `cid` is the caller's own id of a request.
The header is what resellers of the same service take besides (NHN Cloud calls it X-NC-API-IDEMPOTENCY-KEY). Blocking; one call.
"""

import dataclasses
import email.utils
import http.client
import json
import time
import urllib.parse

# Not the message's fault: our token, too early, too many, being handled, or theirs. Everything else with a 4 is.
_TEMPORARY = {401, 403, 408, 409, 423, 425, 429}


class Unsure(Exception):
    """Nobody knows whether it was sent, or it was not and may be later. `retry_after`: seconds, as the answer asked; or None."""

    def __init__(self, text, retry_after=None):
        super().__init__(text)
        self.retry_after = retry_after


class Declined(Exception):
    """The message was refused: asking again would end the same way."""


@dataclasses.dataclass
class Endpoint:
    url: str            # "https://…", without /v2/send/kakao
    token: str
    sender_key: str
    sender_number: str
    idempotency_header: str = "idempotency-key"
    timeout_seconds: float = 10.0

    def send(self, key, phone_number, template_code, message):
        """Sends one message; returns Kakao's id of it. Raises Unsure or Declined."""
        body = json.dumps({
            "message_type": "AT", "sender_key": self.sender_key, "cid": key, "template_code": template_code,
            "phone_number": phone_number, "sender_no": self.sender_number, "message": message, "fall_back_yn": False,
        }, ensure_ascii=False).encode()
        headers = {"authorization": f"Bearer {self.token}", "content-type": "application/json; charset=utf-8",
                   "accept": "application/json", self.idempotency_header: key}
        place = urllib.parse.urlsplit(self.url)
        connect = http.client.HTTPSConnection if place.scheme == "https" else http.client.HTTPConnection
        connection = connect(place.hostname, place.port, timeout=self.timeout_seconds)
        try:
            connection.request("POST", f"{place.path.rstrip('/')}/v2/send/kakao", body, headers)
            response = connection.getresponse()
            text = response.read(65536).decode("utf-8", "replace")
        except (OSError, http.client.HTTPException) as error:
            raise Unsure(f"{type(error).__name__}: {error}") from error
        finally:
            connection.close()
        if 200 <= response.status < 300:
            return _receipt(text)
        said = f"HTTP {response.status} {' '.join(text.split())[:200]}"
        if 400 <= response.status < 500 and response.status not in _TEMPORARY:
            raise Declined(said)
        raise Unsure(said, _retry_after(response.getheader("retry-after")))


def _receipt(text):
    try:
        answer = json.loads(text)
        return str(answer.get("uid") or answer.get("cid") or "")
    except (ValueError, AttributeError):
        return ""


def _retry_after(value):
    """Seconds, from a number or an HTTP date (RFC 9110)."""
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
