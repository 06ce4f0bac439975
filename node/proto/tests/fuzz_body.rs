//! What a fuzzer runs on arbitrary bytes. Two callers share this file: the fuzz package beside the
//! crate, and a bounded test on the stable compiler.

use bincode::config::standard;
use lockring_proto::codec::{FrameError, decode_frame, decode_frames, encode_frame, split_frame};
use lockring_proto::limits::FRAME_BYTES_MAX;
use lockring_proto::{Hello, HelloReply, Push, Reply, Request};

/// Splits bytes into frames and decodes each as every type, as well as the bytes as they are.
pub fn decode(bytes: &[u8]) {
    decode_all(bytes);
    let mut rest = bytes;
    let mut total = 0;
    while let Ok(Some((body, after))) = split_frame(rest) {
        assert!(body.len() <= FRAME_BYTES_MAX);
        total += rest.len() - after.len();
        decode_all(body);
        rest = after;
    }
    assert_eq!(total + rest.len(), bytes.len());
}

fn decode_all(body: &[u8]) {
    let _hello: Result<Hello<'_>, FrameError> = decode_frame(body);
    let _reply: Result<HelloReply, FrameError> = decode_frame(body);
    let _request: Result<Request<'_>, FrameError> = decode_frame(body);
    let _reply: Result<Reply, FrameError> = decode_frame(body);
    let _push: Result<Push, FrameError> = decode_frame(body);
}

/// Holds one body to the differential rules, as one type:
/// - the codec and the hot path agree on whether it is a message, and on which one;
/// - what decodes encodes to a frame that is no longer, and that is the derived code's;
/// - that frame decodes to the same message, and encodes to itself.
macro_rules! differential_as {
    ($message:ty, $body:expr, $frame:expr) => {{
        let (body, frame): (&[u8], &[u8]) = ($body, $frame);
        let decoded: Result<$message, FrameError> = decode_frame(body);
        let mut taken: Vec<$message> = Vec::new();
        let rest = decode_frames(frame, |message| taken.push(message));
        match decoded {
            Err(error) => assert_eq!((rest, taken), (Err(error), Vec::new())),
            Ok(message) => {
                let mut again = Vec::new();
                encode_frame(&message, &mut again);
                let split = split_frame(&again);
                let Ok(Some((short, []))) = split else {
                    panic!("not one frame: {split:?} of {message:?}");
                };
                assert!(short.len() <= body.len(), "{message:?} grew");
                let derived = bincode::encode_to_vec(&message, standard());
                assert_eq!(derived.as_deref().ok(), Some(short), "{message:?}");
                let back: Result<$message, FrameError> = decode_frame(short);
                assert_eq!(back.as_ref(), Ok(&message));
                assert_eq!((rest, taken), (Ok([].as_slice()), vec![message]));
            }
        }
    }};
}

/// Holds bytes, taken as a body, to the differential rules as every type.
pub fn differential(body: &[u8]) {
    if body.len() > FRAME_BYTES_MAX {
        return;
    }
    let frame = framed(body);
    differential_as!(Hello<'_>, body, &frame);
    differential_as!(HelloReply, body, &frame);
    differential_as!(Request<'_>, body, &frame);
    differential_as!(Reply, body, &frame);
    differential_as!(Push, body, &frame);
}

/// A body behind its length, built by the document and not by our code.
pub fn framed(body: &[u8]) -> Vec<u8> {
    let len = body.len();
    let mut frame = match len {
        0..=250 => vec![len as u8],
        251..=0xffff => vec![251, len as u8, (len >> 8) as u8],
        _ => vec![252, len as u8, (len >> 8) as u8, (len >> 16) as u8, (len >> 24) as u8],
    };
    frame.extend_from_slice(body);
    frame
}
