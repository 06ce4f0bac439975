//! A new beginning for a node whose record or log is damaged, lost or put back from an old copy.

use crate::control::log_state;
use crate::data_dir::{self, FileError};
use crate::store::{self, LOG, Record, STATE, StoreError, Vault};
use lockring_control::cluster::{Before, Floors, State};
use lockring_proto::limits;
use lockring_ring::{AttachId, CellBits, Epoch, NodeId, RingVersion};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What [`recover`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// Under which names the former files are kept, if there were any.
    pub kept: Vec<PathBuf>,
    /// The next start grants above this epoch.
    pub epoch_floor: u32,
    /// The next start grants when a lease of this length has ended.
    pub longest_ttl: Duration,
    /// What the former files said, if they could be read.
    pub former: Option<Former>,
}

/// What is told of a former log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Former {
    /// The longest session TTL that may still be alive somewhere.
    pub longest_ttl: Duration,
    /// Whose session it was, for people.
    pub longest_by: String,
}

/// Has a node begin a new log in place of a damaged, lost or outdated one, whose files are kept
/// beside it. The next start grants nothing until whoever served before has surely ended, and then
/// a lease of `longest_ttl` (`None`: of the longest that the former files tell of if they are the
/// newest, else of the longest there can be), and only above `epoch_floor`, which what can still be
/// read only ever raises.
///
/// # Errors
/// When another process has the directory, it cannot be written, or the floor is too high.
pub fn recover(
    data_dir: &Path,
    epoch_floor: u32,
    longest_ttl: Option<Duration>,
) -> Result<Recovered, StoreError> {
    // The last epoch is never given.
    if epoch_floor >= Epoch::LAST.0 - 1 {
        return Err(StoreError::EpochsUsedUp(epoch_floor));
    }
    data_dir::prepare(data_dir)?;
    let _lock = store::lock(data_dir)?;
    let record = record_of(data_dir);
    let begun_at = record.as_ref().map_or(0, |record| record.log);
    let (state, is_newest) = state_of(data_dir, begun_at);
    let former = former(record.as_ref(), state.as_ref());
    let told = former.as_ref().filter(|_| is_newest).map(|former| former.longest_ttl);
    let longest_ttl = longest_ttl.or(told).unwrap_or(limits::TTL_MAX);
    let record = match record {
        Some(record) => record,
        None => Record::new().map_err(StoreError::NoRandomness)?,
    };
    let floors = floors_above(&record, state.as_ref(), (epoch_floor, longest_ttl));
    // Second names for the files: at no moment is there none under the first.
    let paths = [STATE.file, LOG.file].map(|file| data_dir.join(file));
    let mut kept = Vec::new();
    for path in &paths {
        kept.extend(store::keep(path)?);
    }
    // In this order: after a crash in between, the floors are known without the log, and it is
    // begun anew only once it is gone.
    let (epoch_floor, node) = (floors.epoch.0, floors.node.0);
    let mut next = Record { node, floors: Some(floors), is_logged: true, log: 0, ..record };
    next.revision += 1;
    store::replace(data_dir, &next)?;
    for name in [LOG.file, LOG.mark] {
        remove(&data_dir.join(name))?;
    }
    data_dir::sync_dir(data_dir)?;
    next.revision += 1;
    next.is_logged = false;
    store::replace(data_dir, &next)?;
    Ok(Recovered { kept, epoch_floor, longest_ttl, former })
}

fn record_of(dir: &Path) -> Option<Record> {
    let mut vault = match Vault::open(dir, &STATE) {
        Ok(vault) => vault?,
        // Older than its mark it still says who the node is.
        Err(_) => Vault::open_older(dir, &STATE)?,
    };
    let path = vault.path();
    store::read(vault.database().ok()?, &path).ok()
}

/// The state of the log, if it can be read, and whether nothing newer can have been there.
fn state_of(dir: &Path, begun_at: u64) -> (Option<State>, bool) {
    let (vault, is_newest) = match Vault::open(dir, &LOG) {
        Ok(vault) => {
            let is_newest = vault.as_ref().is_none_or(|vault| vault.revision() >= begun_at);
            (vault, is_newest)
        }
        Err(_) => (Vault::open_older(dir, &LOG), false),
    };
    let state = vault.and_then(|mut vault| log_state(&mut vault, CellBits::DEFAULT).ok());
    // One that was never begun says nothing: what was before it still counts.
    (state.filter(|state| state.cells().next().is_some()), is_newest)
}

fn former(record: Option<&Record>, state: Option<&State>) -> Option<Former> {
    let longest = state.map(|state| (state.longest().ttl, state.longest().by.clone()));
    let floors = record.and_then(|record| record.floors.as_ref());
    let of_floors = floors.map(|floors| (floors.longest_ttl, floors.longest_by.clone()));
    let (longest_ttl, longest_by) = longest.or(of_floors)?;
    Some(Former { longest_ttl, longest_by })
}

/// Above whatever is known to have been given. Of ring versions and attachments that were given
/// and are not known, none is as high as the seconds since 1970 times a million.
fn floors_above(
    record: &Record,
    state: Option<&State>,
    (least, longest_ttl): (u32, Duration),
) -> Floors {
    let before = record.floors.as_ref();
    let epochs = state.into_iter().flat_map(State::cells).map(|(_, cell)| cell.epoch);
    let epoch = epochs.chain(before.map(|floors| floors.epoch)).fold(Epoch(least), Epoch::max);
    // No id is given twice, but for that of a node that was always alone.
    let others = state.into_iter().flat_map(|state| state.nodes().keys());
    let others = others.filter(|node| node.0 != record.node).max();
    let node = others.map_or(record.node, |other| record.node.max(other.0) + 1);
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let version = state.map_or(0, |state| state.version().0);
    let version = version.max(before.map_or(0, |floors| floors.version.0)).max(seconds << 20);
    Floors {
        epoch,
        version: RingVersion(version),
        node: NodeId(node),
        attach: AttachId(version),
        longest_ttl,
        longest_by: String::new(),
        before: Before::Unknown,
    }
}

fn remove(path: &Path) -> Result<(), StoreError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(FileError::new("remove", path)(error).into())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Store, count};
    use std::fs;

    fn record_there(dir: &Path) -> Record {
        record_of(dir).expect("there is one")
    }

    fn floors_there(dir: &Path) -> Floors {
        record_there(dir).floors.expect("something was before")
    }

    /// After damage the node goes on above every epoch that it may have used, and waits.
    #[test]
    fn a_damaged_record_is_made_anew_above_a_floor() {
        let base = tempfile::tempdir().unwrap();
        let dir = base.path();
        drop(Store::open(dir).unwrap().log().unwrap());
        let path = dir.join(STATE.file);
        let mut damaged = fs::read(&path).unwrap();
        damaged.truncate(damaged.len() / 2);
        fs::write(&path, &damaged).unwrap();
        let minute = Duration::from_secs(60);
        let recovered = recover(dir, 3, Some(minute)).unwrap();
        assert_eq!((recovered.epoch_floor, recovered.longest_ttl), (3, minute));
        assert_eq!(recovered.kept.len(), 2, "the log too");
        assert_eq!(fs::read(&recovered.kept[0]).unwrap(), damaged);
        let floors = floors_there(dir);
        assert_eq!((floors.epoch, floors.before), (Epoch(3), Before::Unknown));
        assert_eq!(floors.longest_ttl, minute);
        let mut store = Store::open(dir).unwrap();
        store.log().unwrap();
        drop(store);
        // A healthy one stays the same node, and its floors are only raised.
        let before = record_there(dir);
        let raised = recover(dir, 2, None).unwrap();
        assert_eq!(raised.epoch_floor, 3);
        let after = record_there(dir);
        assert_eq!((after.cluster, after.node), (before.cluster, before.node));
        assert!(floors_there(dir).version >= floors.version);
        assert!(!after.is_logged);
    }

    #[test]
    fn what_is_gone_is_waited_for_the_longest() {
        let base = tempfile::tempdir().unwrap();
        let lost = recover(base.path(), 0, None).unwrap();
        assert_eq!((lost.kept.len(), lost.longest_ttl, lost.former), (0, limits::TTL_MAX, None));
        // Who insists may also lower what the former files tell of, and is told what that was.
        let told = recover(base.path(), 9, Some(Duration::from_secs(1))).unwrap();
        assert_eq!(told.former.unwrap().longest_ttl, limits::TTL_MAX);
        assert_eq!(floors_there(base.path()).longest_ttl, Duration::from_secs(1));
        let held = Store::open(base.path()).unwrap();
        let again = |floor| recover(base.path(), floor, None).unwrap_err();
        assert!(matches!(again(10), StoreError::Locked(_)));
        drop(held);
        assert!(matches!(again(Epoch::LAST.0 - 1), StoreError::EpochsUsedUp(_)));
        assert!(recover(base.path(), Epoch::LAST.0 - 2, None).is_ok());
    }

    /// A start that failed before it began the log leaves an empty one.
    #[test]
    fn what_was_before_an_empty_log_still_counts() {
        let base = tempfile::tempdir().unwrap();
        let hour = Duration::from_secs(3600);
        recover(base.path(), 7, Some(hour)).unwrap();
        drop(Store::open(base.path()).unwrap().log().unwrap());
        let again = recover(base.path(), 0, None).unwrap();
        assert_eq!((again.longest_ttl, again.epoch_floor), (hour, 7));
    }

    /// An older copy of a log still says what was surely given.
    #[test]
    fn an_older_log_raises_the_floor() {
        let base = tempfile::tempdir().unwrap();
        let dir = base.path();
        let mut store = Store::open(dir).unwrap();
        let mut log = store.log().unwrap();
        let older = fs::read(dir.join(LOG.file)).unwrap();
        log.commit(count).unwrap();
        drop((log, store));
        fs::write(dir.join(LOG.file), older).unwrap();
        let recovered = recover(dir, 4, None).unwrap();
        assert_eq!(recovered.former, None, "it was never begun");
        assert_eq!(recovered.longest_ttl, limits::TTL_MAX, "a newer one may have had more");
    }
}
