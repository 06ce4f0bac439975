//! Tokens: a hold, and the session that owns it, as text for another process.

use lockring_proto::SessionId;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A hold that another process may end or renew. Whoever has the text owns the lock: keep it as
/// secret as the lock matters.
///
/// ```no_run
/// # use lockring_client::{Client, Error, Token};
/// # async fn example(client: Client, url: &str) -> Result<(), Error> {
/// // One process takes the lock and ends...
/// let token = client.into_token(client.lock("handoff").await?);
/// client.leave().await;
/// // ...another, given the text, releases it.
/// let token: Token = token.to_string().parse().expect("the whole text");
/// let other = Client::builder().session(token.session()).ttl(token.ttl()).connect(url).await?;
/// other.adopt(&token).await?.release().await?;
/// # Ok(()) }
/// ```
///
/// Its text is all of it:
///
/// ```
/// use lockring_client::{Token, TokenError};
///
/// let text = "lrt1-070707070707070707070707070707070000010000000000\
///             000000000000ea606f72646572732f3432279a6aa0";
/// let token: Token = text.parse()?;
/// assert_eq!((token.key(), token.fence()), (&b"orders/42"[..], 1 << 40));
/// assert_eq!((token.session(), token.ttl().as_secs()), ([7; 16], 60));
/// assert_eq!(token.to_string(), text);
///
/// let cut: Result<Token, TokenError> = text[..40].parse();
/// assert_eq!(cut, Err(TokenError));
/// # Ok::<(), TokenError>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    pub(crate) session: SessionId,
    pub(crate) ttl: Duration,
    pub(crate) fence: u64,
    pub(crate) key: Vec<u8>,
}

/// A text that is no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is not a token: use what `lockring lock KEY --print-token` has printed, whole")]
pub struct TokenError;

const PREFIX: &str = "lrt1-";

impl Token {
    /// The session's id, for [`crate::Builder::session`].
    pub fn session(&self) -> [u8; 16] {
        self.session.0
    }

    /// The session's TTL.
    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    /// The hold's fence.
    pub fn fence(&self) -> u64 {
        self.fence
    }

    /// The key.
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(32 + self.key.len() + 4);
        bytes.extend_from_slice(&self.session.0);
        bytes.extend_from_slice(&self.fence.to_be_bytes());
        bytes.extend_from_slice(&(self.ttl.as_millis() as u64).to_be_bytes());
        bytes.extend_from_slice(&self.key);
        let sum =
            lockring_ring::hash_key(lockring_ring::NamespaceSeed::of(PREFIX), &bytes).low as u32;
        bytes.extend_from_slice(&sum.to_be_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (session, rest) = bytes.split_first_chunk::<16>()?;
        let (fence, rest) = rest.split_first_chunk::<8>()?;
        let (ttl, rest) = rest.split_first_chunk::<8>()?;
        let (key, _sum) = rest.split_last_chunk::<4>()?;
        let token = Self {
            session: SessionId(*session),
            ttl: Duration::from_millis(u64::from_be_bytes(*ttl)),
            fence: u64::from_be_bytes(*fence),
            key: key.to_vec(),
        };
        (token.bytes() == bytes && !key.is_empty()).then_some(token)
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PREFIX)?;
        self.bytes().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Token {
    /// Without the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token(fence {})", self.fence)
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let hex = text.trim().strip_prefix(PREFIX).ok_or(TokenError)?;
        if hex.len() % 2 != 0 || !hex.is_ascii() {
            return Err(TokenError);
        }
        let bytes: Option<Vec<u8>> = (0..hex.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).ok())
            .collect();
        bytes.as_deref().and_then(Self::from_bytes).ok_or(TokenError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_its_text_and_no_change_of_it_does() {
        let token = Token {
            session: SessionId([7; 16]),
            ttl: Duration::from_secs(60),
            fence: 1 << 41,
            key: b"orders/\xff\x00".to_vec(),
        };
        let text = token.to_string();
        assert_eq!(text.parse(), Ok(token));
        for at in PREFIX.len()..text.len() {
            let mut wrong = text.clone().into_bytes();
            wrong[at] = if wrong[at] == b'0' { b'1' } else { b'0' };
            let wrong = String::from_utf8(wrong).unwrap();
            assert_eq!(wrong.parse::<Token>(), Err(TokenError), "{at}");
        }
        assert_eq!("".parse::<Token>(), Err(TokenError));
        assert_eq!("lrt1-é0".parse::<Token>(), Err(TokenError));
    }
}
