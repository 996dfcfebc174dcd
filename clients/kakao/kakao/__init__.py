"""The KakaoTalk channel: consumes NoticeSent, keeps each notice in SQLite, delivers it over Kakao's message API."""
