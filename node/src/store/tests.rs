//! Tests of the store: what it keeps, and what it says of damaged files.

use super::*;
use lockring_ring::{BootId, CellId};
use redb::StorageBackend;
use redb::backends::FileBackend;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

fn data_dir() -> (tempfile::TempDir, PathBuf) {
    let base = tempfile::tempdir().unwrap();
    let dir = base.path().join("data");
    (base, dir)
}

fn open_error(dir: &Path) -> StoreError {
    Store::open(dir).err().expect("it opened")
}

fn is_corrupt(error: &StoreError) -> bool {
    matches!(error, StoreError::Corrupt { .. })
        && error.to_string().contains(STATE)
        && error.to_string().contains("lockring recover")
}

/// A directory with `file` for its state, and the mark of another.
fn with_state(file: &[u8], marked_in: &Path) -> (tempfile::TempDir, PathBuf) {
    let (base, dir) = data_dir();
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join(STATE), file).unwrap();
    fs::copy(marked_in.join(MARK), dir.join(MARK)).unwrap();
    (base, dir)
}

fn raised(store: &Store) -> Result<Epoch, StoreError> {
    store.commit(&Entry::RaiseEpoch(CellId(0))).map(|state| state.epoch_floor)
}

fn lowered(store: &Store, ttl: Duration) {
    store.commit(&Entry::IntendLongestTtl(ttl)).unwrap();
    store.commit(&Entry::LowerLongestTtl { ttl, by: "who".to_owned() }).unwrap();
}

fn noted(store: &Store, ttl: Duration) -> Result<State, StoreError> {
    store.commit(&Entry::RaiseLongestTtl { ttl, by: "who".to_owned() })
}

/// A life after `before` that owes it a grace of this TTL.
fn life(before: &Boot, boot: u64, floor: u32, longest_ttl: Duration) -> Boot {
    let state = State {
        boot: BootId(boot),
        epoch_floor: Epoch(floor),
        longest_ttl,
        ..before.state.clone()
    };
    Boot { first: false, was_clean: false, grace: state.grace(), state, ..before.clone() }
}

/// The bytes of a store after three lives, closed or as `kill -9` leaves it.
fn some_lives(dir: &Path, closed: bool) -> Vec<u8> {
    let store = Store::open(dir).unwrap();
    for _ in 0..3 {
        store.boot().unwrap();
    }
    if closed {
        drop(store);
    }
    fs::read(dir.join(STATE)).unwrap()
}

#[test]
fn the_first_start_makes_everything() {
    let (_base, dir) = data_dir();
    let boot = Store::open(&dir).unwrap().boot().unwrap();
    assert!(boot.first && !boot.was_clean);
    assert_eq!((boot.state.boot, boot.state.epoch_floor, boot.node), (BootId(1), Epoch(1), 1));
    assert_eq!(boot.state.longest_ttl, Duration::from_secs(10));
    assert_ne!(boot.cluster, [0; 16]);
    assert_ne!(boot.keys.reset, [0; 64]);
    for name in [STATE, MARK, LOCK] {
        assert_eq!(fs::metadata(dir.join(name)).unwrap().mode() & 0o777, 0o600, "{name}");
    }
    let (_base, other) = data_dir();
    let other = Store::open(&other).unwrap().boot().unwrap();
    assert!(other.cluster != boot.cluster && other.keys != boot.keys);
}

#[test]
fn everything_outlives_the_process() {
    let (_base, dir) = data_dir();
    let first = Store::open(&dir).unwrap().boot().unwrap();
    let store = Store::open(&dir).unwrap();
    let second = store.boot().unwrap();
    let expected = life(&first, 2, 2, Duration::from_secs(10));
    assert_eq!(second, expected);
    assert_eq!(raised(&store).unwrap(), Epoch(3));
    noted(&store, Duration::from_secs(60)).unwrap();
    store.commit(&Entry::CleanStop(BootId(2))).unwrap();
    drop(store);
    let third = Store::open(&dir).unwrap().boot().unwrap();
    let expected = life(&first, 3, 4, Duration::from_secs(60));
    let state = State { longest_by: "who".to_owned(), ..expected.state.clone() };
    assert_eq!(third, Boot { was_clean: true, grace: None, state, ..expected });
    let fourth = Store::open(&dir).unwrap().boot().unwrap();
    assert!(!fourth.was_clean, "a clean stop counts for one start");
}

#[test]
fn a_killed_process_loses_nothing() {
    let (_base, dir) = data_dir();
    let store = Store::open(&dir).unwrap();
    let boot = store.boot().unwrap();
    raised(&store).unwrap();
    let (_copy_base, copy) = with_state(&fs::read(dir.join(STATE)).unwrap(), &dir);
    let after = Store::open(&copy).unwrap().boot().unwrap();
    assert_eq!(after, life(&boot, 2, 3, Duration::from_secs(10)));
}

#[test]
fn the_longest_ttl_only_grows_until_it_is_set() {
    let (_base, dir) = data_dir();
    let store = Store::open(&dir).unwrap();
    let longest = || store.read().unwrap().longest_ttl_ms;
    let revision = store.read().unwrap().revision;
    noted(&store, Duration::from_secs(9)).unwrap();
    assert_eq!(store.read().unwrap().revision, revision, "nothing to write");
    noted(&store, Duration::from_nanos(20_000_000_001)).unwrap();
    assert_eq!(longest(), 20_001, "rounded up");
    noted(&store, Duration::from_secs(15)).unwrap();
    assert_eq!(longest(), 20_001);
    lowered(&store, Duration::from_secs(15));
    assert_eq!(longest(), 15_000);
    noted(&store, Duration::MAX).unwrap();
    assert_eq!(longest(), u64::MAX);
}

#[test]
fn two_processes_cannot_share_a_directory() {
    let (_base, dir) = data_dir();
    let store = Store::open(&dir).unwrap();
    let error = open_error(&dir);
    assert!(matches!(error, StoreError::Locked(_)));
    assert!(error.to_string().contains("data directory of its own"), "{error}");
    drop(store);
    Store::open(&dir).unwrap();
}

#[test]
fn a_place_that_cannot_be_written_is_told() {
    // Nobody, the superuser included, can make files there.
    for dir in ["/sys", "/sys/lockring"].map(Path::new) {
        let error = open_error(dir);
        assert!(matches!(error, StoreError::NotWritable(_)), "{error}");
        let message = error.to_string();
        assert!(message.contains("/sys") && message.contains("data directory"), "{message}");
    }
}

#[test]
fn the_last_epoch_is_refused_and_nothing_changes() {
    let (_base, dir) = data_dir();
    let store = Store::open(&dir).unwrap();
    let second_last = Epoch::LAST.0 - 2;
    let record = store.read().unwrap();
    let before = Record { epoch_floor: second_last, revision: record.revision + 1, ..record };
    write(store.opened.lock().unwrap().database.as_ref().unwrap(), &before).unwrap();
    assert_eq!(store.boot().unwrap().state.epoch_floor, Epoch(Epoch::LAST.0 - 1));
    let before = store.read().unwrap();
    for error in [store.boot().unwrap_err(), raised(&store).unwrap_err()] {
        assert!(matches!(error, StoreError::EpochsUsedUp(_)));
        assert!(error.to_string().contains("start a new cluster"), "{error}");
    }
    assert_eq!(store.read().unwrap(), before);
}

/// Damage of every kind is told, or does not matter: it never panics and never goes back.
#[test]
fn damage_is_told_and_never_believed() {
    let (_base, dir) = data_dir();
    for closed in [true, false] {
        let whole = some_lives(&dir, closed);
        let (mut told, mut harmless) = (0, 0);
        let mut check = |bytes: Vec<u8>| {
            let (_base, damaged) = with_state(&bytes, &dir);
            match Store::open(&damaged).and_then(|store| store.boot()) {
                Ok(boot) => {
                    let expected = if closed { 4 } else { 7 };
                    let State { boot, epoch_floor, .. } = boot.state;
                    assert_eq!((boot, epoch_floor), (BootId(expected), Epoch(expected as u32)));
                    harmless += 1;
                }
                Err(error) => {
                    assert!(is_corrupt(&error), "{error}");
                    told += 1;
                }
            }
        };
        // The header is 320 bytes; the rest is sampled. A file that was closed is believed in more
        // places, being one that should need no repair.
        let step = whole.len() / if closed { 400 } else { 60 };
        let positions = (0..320).step_by(3).chain((320..whole.len()).step_by(step));
        for (index, position) in positions.enumerate() {
            let mut flipped = whole.clone();
            flipped[position] ^= 1 << (index % 8);
            check(flipped);
        }
        for tenth in 0..10 {
            let length = whole.len() * tenth / 10;
            check(whole[..length].to_vec());
            let mut zeroed = whole.clone();
            zeroed[length..].fill(0);
            check(zeroed);
        }
        assert!(told > 50 && harmless > 5, "told {told}, harmless {harmless}");
    }
}

#[test]
fn every_byte_of_the_record_is_guarded() {
    let (_base, dir) = data_dir();
    let whole = some_lives(&dir, true);
    let record = {
        let store = Store::open(&dir).unwrap();
        store.read().unwrap().encode()
    };
    let found = whole.windows(record.len()).position(|window| window == record).unwrap();
    for position in (found..found + record.len()).step_by(7) {
        let mut flipped = whole.clone();
        flipped[position] ^= 0x10;
        let (_base, damaged) = with_state(&flipped, &dir);
        assert!(is_corrupt(&open_error(&damaged)), "{position}");
    }
}

#[test]
fn a_lost_or_older_file_is_told() {
    let (_base, dir) = data_dir();
    drop(Store::open(&dir).unwrap());
    let older = fs::read(dir.join(STATE)).unwrap();
    some_lives(&dir, true);
    fs::write(dir.join(STATE), older).unwrap();
    assert!(is_corrupt(&open_error(&dir)));
    fs::remove_file(dir.join(STATE)).unwrap();
    let error = open_error(&dir);
    assert!(is_corrupt(&error) && error.to_string().contains("gone"), "{error}");
}

/// Starting anew beside certificates that clients trust would give out fences they have seen.
#[test]
fn an_authority_without_a_state_is_told() {
    let (_base, dir) = data_dir();
    drop(Store::open(&dir).unwrap());
    crate::files::ensure_files(&dir).unwrap();
    drop(Store::open(&dir).unwrap());
    for name in [STATE, MARK] {
        fs::remove_file(dir.join(name)).unwrap();
    }
    let error = open_error(&dir);
    assert!(is_corrupt(&error) && error.to_string().contains(CA_KEY), "{error}");
    Store::recover(&dir, 5, None).unwrap();
    assert!(!Store::open(&dir).unwrap().boot().unwrap().first);
    // A certificate from elsewhere, without the authority's key, is a first start.
    let (_base, other) = data_dir();
    fs::create_dir(&other).unwrap();
    fs::copy(dir.join("ca.pem"), other.join("ca.pem")).unwrap();
    assert!(Store::open(&other).unwrap().boot().unwrap().first);
}

/// A mark that could not be written is written with the next change, or when it is asked whether
/// one would succeed.
#[test]
fn after_a_write_that_failed_the_next_one_works() {
    let (_base, dir) = data_dir();
    let store = Store::open(&dir).unwrap();
    store.boot().unwrap();
    let mark = dir.join(MARK);
    fs::remove_file(&mark).unwrap();
    fs::create_dir(&mark).unwrap();
    let error = noted(&store, Duration::from_secs(20)).unwrap_err();
    assert!(!error.cause().contains("os error"), "{}", error.cause());
    assert!(store.commit(&Entry::Blank).is_err(), "the mark is still behind");
    fs::remove_dir(&mark).unwrap();
    store.opened.lock().unwrap().database = None;
    noted(&store, Duration::from_secs(20)).unwrap();
    assert_eq!(store.read().unwrap().longest_ttl_ms, 20_000);
    let revision = store.read().unwrap().revision;
    assert_eq!(record::decode_mark(&fs::read(&mark).unwrap()), Some(revision));
    // One that was put back behind its back is not gone on with.
    store.opened.lock().unwrap().database = None;
    let (_older_base, older) = data_dir();
    drop(Store::open(&older).unwrap());
    fs::copy(older.join(STATE), dir.join(STATE)).unwrap();
    assert!(is_corrupt(&store.commit(&Entry::Blank).unwrap_err()));
}

/// A disk that is full for a while.
#[derive(Debug)]
struct FullDisk {
    file: FileBackend,
    full: Arc<AtomicBool>,
}

impl FullDisk {
    fn room(&self) -> io::Result<()> {
        let full = self.full.load(Ordering::Relaxed);
        if full { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

impl StorageBackend for FullDisk {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.room().and_then(|()| self.file.set_len(len))
    }
    fn sync_data(&self) -> io::Result<()> {
        self.room().and_then(|()| self.file.sync_data())
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.room().and_then(|()| self.file.write(offset, data))
    }
}

/// The database refuses every write after one that failed: the next one opens it anew.
#[test]
fn a_disk_that_was_full_is_written_again() {
    let (_base, dir) = data_dir();
    let store = Store::open(&dir).unwrap();
    let before = store.boot().unwrap();
    store.opened.lock().unwrap().database = None;
    let full = Arc::new(AtomicBool::new(false));
    let file = OpenOptions::new().read(true).write(true).open(dir.join(STATE)).unwrap();
    let disk = FullDisk { file: FileBackend::new(file).unwrap(), full: Arc::clone(&full) };
    let database = Database::builder().create_with_backend(disk).unwrap();
    store.opened.lock().unwrap().database = Some(database);
    full.store(true, Ordering::Relaxed);
    let error = noted(&store, Duration::from_secs(20)).unwrap_err();
    assert!(error.cause().contains("space"), "{}", error.cause());
    full.store(false, Ordering::Relaxed);
    noted(&store, Duration::from_secs(20)).unwrap();
    assert_eq!(store.read().unwrap().longest_ttl_ms, 20_000);
    assert_eq!(raised(&store).unwrap(), Epoch(before.state.epoch_floor.0 + 1));
}

#[test]
fn a_store_in_memory_works_alike() {
    let store = Store::in_memory().unwrap();
    assert!(store.boot().unwrap().first);
    noted(&store, Duration::from_secs(60)).unwrap();
    let boot = store.boot().unwrap();
    assert_eq!((boot.state.boot, boot.state.longest_by.as_str()), (BootId(2), "who"));
}

#[test]
fn a_lost_or_damaged_mark_is_made_again() {
    let (_base, dir) = data_dir();
    some_lives(&dir, true);
    let mark = fs::read(dir.join(MARK)).unwrap();
    for bytes in [&b""[..], b"short", &mark[1..], &[0; 16]] {
        fs::write(dir.join(MARK), bytes).unwrap();
        drop(Store::open(&dir).unwrap());
        assert_eq!(fs::read(dir.join(MARK)).unwrap(), mark);
    }
    fs::remove_file(dir.join(MARK)).unwrap();
    drop(Store::open(&dir).unwrap());
    assert_eq!(fs::read(dir.join(MARK)).unwrap(), mark);
}

#[test]
fn a_first_start_cut_short_is_begun_again() {
    let (_base, dir) = data_dir();
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("state.redb.new"), b"half a file").unwrap();
    assert!(Store::open(&dir).unwrap().boot().unwrap().first);
    assert!(!dir.join("state.redb.new").exists());
}

/// After damage the node goes on above every epoch that it may have used, and waits.
#[test]
fn a_damaged_store_is_recovered_above_a_floor() {
    let (_base, dir) = data_dir();
    let lost = some_lives(&dir, true);
    let mut damaged = lost.clone();
    damaged.truncate(lost.len() / 2);
    fs::write(dir.join(STATE), &damaged).unwrap();
    assert!(is_corrupt(&open_error(&dir)));
    let recovered = Store::recover(&dir, 3, Some(Duration::from_secs(60))).unwrap();
    assert_eq!((recovered.epoch_floor, recovered.former), (3, None));
    assert_eq!(fs::read(recovered.kept.unwrap()).unwrap(), damaged);
    let boot = Store::open(&dir).unwrap().boot().unwrap();
    assert!(!boot.first && !boot.was_clean, "it waits for earlier leases");
    assert_eq!((boot.state.epoch_floor, boot.state.boot), (Epoch(4), BootId(4)));
    assert_eq!(boot.state.longest_ttl, Duration::from_secs(60));
    // A healthy one, or an old copy of one, stays the same node, and its floor is only raised.
    let raised = Store::recover(&dir, 2, None).unwrap();
    assert!(raised.kept.is_some_and(|kept| kept.exists()), "the earlier file is kept too");
    assert_eq!((raised.epoch_floor, raised.longest_ttl), (4, boot.state.longest_ttl));
    let after = Store::open(&dir).unwrap().boot().unwrap();
    assert_eq!(after, life(&boot, 5, 5, Duration::from_secs(60)));
    // A state that is gone altogether, as told by its mark.
    fs::remove_file(dir.join(STATE)).unwrap();
    let lost = Store::recover(&dir, 9, None).unwrap();
    assert_eq!((lost.kept, lost.longest_ttl, lost.former), (None, limits::TTL_MAX, None));
    assert_eq!(Store::open(&dir).unwrap().boot().unwrap().state.epoch_floor, Epoch(10));
    // Who insists may also lower what the former state tells of, and is told what that was.
    let told = Store::recover(&dir, 9, Some(Duration::from_secs(1))).unwrap();
    assert_eq!(told.former.unwrap().longest_ttl, limits::TTL_MAX);
    assert_eq!(
        Store::open(&dir).unwrap().boot().unwrap().state.longest_ttl,
        Duration::from_secs(1)
    );
    // A floor of 0 is a mistake, but no first start: that would not wait.
    let (_base, other) = data_dir();
    Store::recover(&other, 0, None).unwrap();
    assert!(!Store::open(&other).unwrap().boot().unwrap().first);
    let held = Store::open(&dir).unwrap();
    let recover = |floor| Store::recover(&dir, floor, None).unwrap_err();
    assert!(matches!(recover(10), StoreError::Locked(_)));
    drop(held);
    assert!(matches!(recover(Epoch::LAST.0), StoreError::EpochsUsedUp(_)));
}

#[test]
fn a_database_of_another_program_is_told() {
    let (_base, dir) = data_dir();
    fs::create_dir(&dir).unwrap();
    drop(Database::create(dir.join(STATE)).unwrap());
    assert!(is_corrupt(&open_error(&dir)));
}

/// Without a mark to tell it, as after a crash between a commit and its mark: the commit before
/// is still in the file, and must not be taken for the last one.
#[test]
fn damage_to_the_last_commit_is_no_step_back() {
    let (_base, dir) = data_dir();
    let store = Store::open(&dir).unwrap();
    for _ in 0..3 {
        store.boot().unwrap();
    }
    let record = store.read().unwrap().encode();
    let mut killed = fs::read(dir.join(STATE)).unwrap();
    let found = killed.windows(record.len()).position(|window| window == record).unwrap();
    killed[found + 20] ^= 1;
    let (_base, damaged) = with_state(&killed, &dir);
    fs::remove_file(damaged.join(MARK)).unwrap();
    assert!(is_corrupt(&open_error(&damaged)));
}

/// The lock comes before anything is made: two first starts at once would each make a store.
#[test]
fn a_locked_directory_is_left_empty() {
    let (_base, dir) = data_dir();
    data_dir::prepare(&dir).unwrap();
    let _held = lock(&dir).unwrap();
    assert!(matches!(open_error(&dir), StoreError::Locked(_)));
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
}
