//! One message of any type, for tables and properties.

use bincode::config::standard;
use lockring_proto::codec::{FrameError, decode_frame, decode_frames, encode_frame, split_frame};
use lockring_proto::{Hello, HelloReply, Push, Reply, Request};

/// A message of any type.
#[derive(Clone, Debug, PartialEq)]
pub enum Any {
    Hello(Hello<'static>),
    HelloReply(HelloReply),
    Request(Request<'static>),
    Reply(Reply),
    Push(Push),
}

/// Runs `$then` with the message inside as `$message`, whatever its type.
macro_rules! with {
    ($any:expr, $message:ident => $then:expr) => {
        match $any {
            Any::Hello($message) => $then,
            Any::HelloReply($message) => $then,
            Any::Request($message) => $then,
            Any::Reply($message) => $then,
            Any::Push($message) => $then,
        }
    };
}

impl Any {
    /// Its frame.
    pub fn frame(&self) -> Vec<u8> {
        let mut out = Vec::new();
        with!(self, message => encode_frame(message, &mut out));
        out
    }

    /// The body of its frame.
    pub fn body(&self) -> Vec<u8> {
        let frame = self.frame();
        let (body, rest) = split_frame(&frame).unwrap().unwrap();
        assert!(rest.is_empty());
        body.to_vec()
    }

    /// What the codec's derived code makes of it, without any of ours.
    pub fn derived_body(&self) -> Vec<u8> {
        with!(self, message => bincode::encode_to_vec(message, standard()).unwrap())
    }

    /// Whether a body of its type decodes, and to the same message.
    pub fn is(&self, body: &[u8]) -> Result<bool, FrameError> {
        match self {
            Self::Hello(message) => decode_frame::<Hello<'_>>(body).map(|m| m == *message),
            Self::HelloReply(message) => decode_frame::<HelloReply>(body).map(|m| m == *message),
            Self::Request(message) => decode_frame::<Request<'_>>(body).map(|m| m == *message),
            Self::Reply(message) => decode_frame::<Reply>(body).map(|m| m == *message),
            Self::Push(message) => decode_frame::<Push>(body).map(|m| m == *message),
        }
    }

    /// Whether frames of its type hold this message alone, by way of the hot path.
    pub fn is_all_of(&self, frames: &[u8]) -> Result<bool, FrameError> {
        let mut equal = Vec::new();
        let rest = match self {
            Self::Hello(message) => decode_frames(frames, |m: Hello<'_>| equal.push(m == *message)),
            Self::HelloReply(message) => {
                decode_frames(frames, |m: HelloReply| equal.push(m == *message))
            }
            Self::Request(message) => {
                decode_frames(frames, |m: Request<'_>| equal.push(m == *message))
            }
            Self::Reply(message) => decode_frames(frames, |m: Reply| equal.push(m == *message)),
            Self::Push(message) => decode_frames(frames, |m: Push| equal.push(m == *message)),
        }?;
        Ok(rest.is_empty() && equal == [true])
    }
}
