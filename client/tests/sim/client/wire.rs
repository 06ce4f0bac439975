//! What a run reads off a client's frames.

use crate::hub::Hub;
use lockring_proto::{Reply, Request, codec};

/// Whether a frame is the answer to a renewal, by a ring of this version: a digest by another is of
/// no use.
pub fn is_renewed(frame: &[u8], known: u64) -> bool {
    let Ok(Some((body, _))) = codec::split_frame(frame) else { return false };
    matches!(codec::decode_frame(body), Ok(Reply::Renewed { version, .. }) if version == known)
}

/// Counts the compares that begin in what is to be sent, also those under load.
pub fn tell_compares(hub: &mut Hub, bytes: &[u8], load: bool) {
    let mut rest = bytes;
    while let Ok(Some((body, after))) = codec::split_frame(rest) {
        rest = after;
        let Ok(Request::Compare { after: None, through, .. }) = codec::decode_frame(body) else {
            continue;
        };
        hub.reach("compares");
        if load {
            hub.reach("compares under load");
        }
        if through.is_some() {
            hub.reach("compares of several frames");
        }
    }
}
