//! Tests of the store: what it keeps, and what it says of damaged files.

use super::*;
use lockring_control::cluster::Before;
use lockring_ring::Epoch;
use redb::StorageBackend;
use redb::backends::FileBackend;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A directory of a node that kept no log, as the version before made it: started so often, and
/// stopped so.
pub(crate) fn without_log(dir: &Path, starts: u32, was_clean: bool) {
    let mut record = b"lockring\x02\x09\0\0\0\0\0\0\0".to_vec();
    record.extend([0xcc; 16]);
    record.extend(1_u32.to_le_bytes());
    record.extend([0xaa; 64]);
    record.extend(7_u64.to_le_bytes());
    record.extend(u64::from(starts).to_le_bytes());
    record.extend(starts.to_le_bytes());
    record.extend(10_000_u64.to_le_bytes());
    record.extend([u8::from(was_clean), 3]);
    record.extend(b"who");
    let record = sealed(record);
    let put = |transaction: &WriteTransaction| {
        transaction.open_table(TABLE)?.insert(KEY, &*record)?;
        Ok(())
    };
    data_dir::prepare(dir).unwrap();
    Vault::create(dir, &STATE, put).unwrap().mark().unwrap();
}

fn data_dir() -> (tempfile::TempDir, PathBuf) {
    let base = tempfile::tempdir().unwrap();
    let dir = base.path().join("data");
    (base, dir)
}

fn open_error(dir: &Path) -> StoreError {
    Store::open(dir).err().expect("it opened")
}

fn is_corrupt(error: &StoreError, file: &str) -> bool {
    matches!(error, StoreError::Corrupt { .. })
        && error.to_string().contains(file)
        && error.to_string().contains("lockring recover")
}

/// A directory with these bytes for its state, and the mark of another.
fn with_state(file: &[u8], marked_in: &Path) -> (tempfile::TempDir, PathBuf) {
    let (base, dir) = data_dir();
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join(STATE.file), file).unwrap();
    fs::copy(marked_in.join(STATE.mark), dir.join(STATE.mark)).unwrap();
    (base, dir)
}

fn try_begin(store: &mut Store, boot: u64) -> Result<Boot, StoreError> {
    store.begin(BootId(boot), &Vault::in_memory(&LOG, count))
}

fn begin(store: &mut Store, boot: u64) -> Boot {
    try_begin(store, boot).unwrap()
}

/// The bytes of a store after three processes, closed or as `kill -9` leaves it.
fn some_lives(dir: &Path, closed: bool) -> Vec<u8> {
    let mut store = Store::open(dir).unwrap();
    for boot in 1..=3 {
        begin(&mut store, boot);
    }
    if closed {
        drop(store);
    }
    fs::read(dir.join(STATE.file)).unwrap()
}

#[test]
fn the_first_start_makes_everything() {
    let (_base, dir) = data_dir();
    let mut store = Store::open(&dir).unwrap();
    let boot = begin(&mut store, 7);
    assert_eq!((boot.node, boot.boot, boot.after), (1, BootId(7), None));
    assert_eq!(boot.floors, None);
    assert_ne!(boot.cluster, [0; 16]);
    assert_ne!(boot.keys.reset, [0; 64]);
    store.log().unwrap();
    for name in [STATE.file, STATE.mark, LOG.file, LOG.mark, LOCK] {
        assert_eq!(fs::metadata(dir.join(name)).unwrap().mode() & 0o777, 0o600, "{name}");
    }
    let (_base, other) = data_dir();
    let other = begin(&mut Store::open(&other).unwrap(), 7);
    assert!(other.cluster != boot.cluster && other.keys != boot.keys);
}

#[test]
fn each_process_knows_the_one_before() {
    let (_base, dir) = data_dir();
    let first = begin(&mut Store::open(&dir).unwrap(), 7);
    let mut store = Store::open(&dir).unwrap();
    let (boot, after) = (BootId(8), Some(BootId(7)));
    assert_eq!(begin(&mut store, 8), Boot { boot, after, ..first });
    // In a copy nobody knows whether that one runs on.
    let killed = fs::read(dir.join(STATE.file)).unwrap();
    let (_base, copy) = with_state(&killed, &dir);
    assert_eq!(begin(&mut Store::open(&copy).unwrap(), 9).after, None);
    assert_eq!(begin(&mut Store::open(&copy).unwrap(), 10).after, Some(BootId(9)));
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

/// Damage of every kind is told, or does not matter: it never panics and never goes back.
#[test]
fn damage_is_told_and_never_believed() {
    let (_base, dir) = data_dir();
    for closed in [true, false] {
        let whole = some_lives(&dir, closed);
        let (mut told, mut harmless) = (0, 0);
        let mut check = |bytes: Vec<u8>| {
            let (_base, damaged) = with_state(&bytes, &dir);
            match Store::open(&damaged).and_then(|mut store| try_begin(&mut store, 4)) {
                Ok(boot) => {
                    assert_eq!((boot.after, boot.node), (None, 1), "it is a copy");
                    harmless += 1;
                }
                Err(error) => {
                    assert!(is_corrupt(&error, STATE.file), "{error}");
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
    let record = Store::open(&dir).unwrap().record.encode();
    let found = whole.windows(record.len()).position(|window| window == record).unwrap();
    for position in (found..found + record.len()).step_by(7) {
        let mut flipped = whole.clone();
        flipped[position] ^= 0x10;
        let (_base, damaged) = with_state(&flipped, &dir);
        assert!(is_corrupt(&open_error(&damaged), STATE.file), "{position}");
    }
}

#[test]
fn a_lost_or_older_file_is_told() {
    let (_base, dir) = data_dir();
    drop(Store::open(&dir).unwrap());
    let older = fs::read(dir.join(STATE.file)).unwrap();
    some_lives(&dir, true);
    fs::write(dir.join(STATE.file), older).unwrap();
    assert!(is_corrupt(&open_error(&dir), STATE.file));
    fs::remove_file(dir.join(STATE.file)).unwrap();
    let error = open_error(&dir);
    assert!(is_corrupt(&error, STATE.file) && error.to_string().contains("gone"), "{error}");
}

/// Starting anew beside certificates that clients trust would give out fences they have seen.
#[test]
fn an_authority_without_a_state_is_told() {
    let (_base, dir) = data_dir();
    drop(Store::open(&dir).unwrap());
    crate::files::ensure_files(&dir).unwrap();
    drop(Store::open(&dir).unwrap());
    for name in [STATE.file, STATE.mark] {
        fs::remove_file(dir.join(name)).unwrap();
    }
    let error = open_error(&dir);
    assert!(is_corrupt(&error, STATE.file) && error.to_string().contains(CA_KEY), "{error}");
    // A certificate from elsewhere, without the authority's key, is a first start.
    let (_base, other) = data_dir();
    fs::create_dir(&other).unwrap();
    fs::copy(dir.join("ca.pem"), other.join("ca.pem")).unwrap();
    assert_eq!(begin(&mut Store::open(&other).unwrap(), 1).after, None);
}

/// A mark that could not be written is written with the next change.
#[test]
fn after_a_write_that_failed_the_next_one_works() {
    let (_base, dir) = data_dir();
    let mut store = Store::open(&dir).unwrap();
    let mark = dir.join(STATE.mark);
    fs::remove_file(&mark).unwrap();
    fs::create_dir(&mark).unwrap();
    let error = try_begin(&mut store, 1).unwrap_err();
    assert!(!error.cause().contains("os error"), "{}", error.cause());
    assert!(try_begin(&mut store, 2).is_err(), "the mark is still behind");
    fs::remove_dir(&mark).unwrap();
    store.vault.database = None;
    begin(&mut store, 3);
    let revision = store.record.revision;
    assert_eq!(record::decode_mark(&fs::read(&mark).unwrap()), Some(revision));
    // One that was put back behind its back is not gone on with.
    store.vault.database = None;
    let (_older_base, older) = data_dir();
    drop(Store::open(&older).unwrap());
    fs::copy(older.join(STATE.file), dir.join(STATE.file)).unwrap();
    assert!(is_corrupt(&try_begin(&mut store, 4).unwrap_err(), STATE.file));
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
    let mut store = Store::open(&dir).unwrap();
    store.vault.database = None;
    let full = Arc::new(AtomicBool::new(false));
    let file = OpenOptions::new().read(true).write(true).open(dir.join(STATE.file)).unwrap();
    let disk = FullDisk { file: FileBackend::new(file).unwrap(), full: Arc::clone(&full) };
    let database = Database::builder().create_with_backend(disk).unwrap();
    store.vault.database = Some(database);
    full.store(true, Ordering::Relaxed);
    let error = try_begin(&mut store, 1).unwrap_err();
    assert!(error.cause().contains("space"), "{}", error.cause());
    full.store(false, Ordering::Relaxed);
    begin(&mut store, 2);
    drop(store);
    assert_eq!(begin(&mut Store::open(&dir).unwrap(), 3).after, Some(BootId(2)));
}

#[test]
fn a_store_in_memory_works_alike() {
    let mut store = Store::in_memory().unwrap();
    assert_eq!(begin(&mut store, 1).after, None);
    assert_eq!(begin(&mut store, 2).after, Some(BootId(1)));
    store.log().unwrap();
}

/// What has begun on a log goes on with none other.
#[test]
fn a_lost_or_older_log_is_told() {
    let (_base, dir) = data_dir();
    let mut store = Store::open(&dir).unwrap();
    let mut log = store.log().unwrap();
    let older = fs::read(dir.join(LOG.file)).unwrap();
    log.commit(count).unwrap();
    drop(log);
    assert!(store.log().is_ok());
    let newer = fs::read(dir.join(LOG.file)).unwrap();
    fs::write(dir.join(LOG.file), older).unwrap();
    let error = store.log().err().expect("it is older");
    assert!(is_corrupt(&error, LOG.file) && error.to_string().contains("older"), "{error}");
    fs::write(dir.join(LOG.file), newer).unwrap();
    assert!(store.log().is_ok());
    fs::remove_file(dir.join(LOG.file)).unwrap();
    assert!(is_corrupt(&store.log().err().expect("it is gone"), LOG.file));
    fs::remove_file(dir.join(LOG.mark)).unwrap();
    assert!(is_corrupt(&store.log().err().expect("it is gone"), LOG.file));
    drop(store);
    let mut store = Store::open(&dir).unwrap();
    let error = store.log().err().expect("it is gone");
    assert!(is_corrupt(&error, LOG.file), "{error}");
}

/// Put back together with its mark, while the record stays.
#[test]
fn a_log_of_an_earlier_process_is_told() {
    let (_base, dir) = data_dir();
    let mut store = Store::open(&dir).unwrap();
    let mut log = store.log().unwrap();
    let older = [LOG.file, LOG.mark].map(|name| fs::read(dir.join(name)).unwrap());
    log.commit(count).unwrap();
    store.begin(BootId(2), &log).unwrap();
    drop(log);
    assert!(store.log().is_ok());
    for (name, bytes) in [LOG.file, LOG.mark].into_iter().zip(older) {
        fs::write(dir.join(name), bytes).unwrap();
    }
    let error = store.log().err().expect("it is older");
    assert!(is_corrupt(&error, LOG.file), "{error}");
}

/// A directory of a node that kept no log: what it had is what its log begins above.
#[test]
fn a_directory_without_a_log_is_taken_over() {
    let (_base, dir) = data_dir();
    let floors = Floors {
        epoch: Epoch(5),
        version: lockring_ring::RingVersion(5),
        node: lockring_ring::NodeId(1),
        attach: lockring_ring::AttachId(1),
        longest_ttl: std::time::Duration::from_secs(60),
        longest_by: "team/web".to_owned(),
        before: Before::One,
    };
    data_dir::prepare(&dir).unwrap();
    let record = Record { floors: Some(floors.clone()), ..Record::new().unwrap() };
    replace(&dir, &record).unwrap();
    let mut store = Store::open(&dir).unwrap();
    let boot = begin(&mut store, 7);
    assert_eq!((boot.after, boot.floors, boot.cluster), (None, Some(floors), record.cluster));
    store.log().unwrap();
}

#[test]
fn a_lost_or_damaged_mark_is_made_again() {
    let (_base, dir) = data_dir();
    some_lives(&dir, true);
    let mark = fs::read(dir.join(STATE.mark)).unwrap();
    for bytes in [&b""[..], b"short", &mark[1..], &[0; 16]] {
        fs::write(dir.join(STATE.mark), bytes).unwrap();
        drop(Store::open(&dir).unwrap());
        assert_eq!(fs::read(dir.join(STATE.mark)).unwrap(), mark);
    }
    fs::remove_file(dir.join(STATE.mark)).unwrap();
    drop(Store::open(&dir).unwrap());
    assert_eq!(fs::read(dir.join(STATE.mark)).unwrap(), mark);
}

#[test]
fn a_first_start_cut_short_is_begun_again() {
    let (_base, dir) = data_dir();
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("state.redb.new"), b"half a file").unwrap();
    fs::write(dir.join(".log.mark.12ab.tmp"), b"half").unwrap();
    assert_eq!(begin(&mut Store::open(&dir).unwrap(), 1).after, None);
    assert!(!dir.join("state.redb.new").exists());
    assert!(!dir.join(".log.mark.12ab.tmp").exists());
}

#[test]
fn a_database_of_another_program_is_told() {
    let (_base, dir) = data_dir();
    fs::create_dir(&dir).unwrap();
    drop(Database::create(dir.join(STATE.file)).unwrap());
    assert!(is_corrupt(&open_error(&dir), STATE.file));
}

/// Without a mark to tell it, as after a crash between a commit and its mark: the commit before
/// is still in the file, and must not be taken for the last one.
#[test]
fn damage_to_the_last_commit_is_no_step_back() {
    let (_base, dir) = data_dir();
    let mut store = Store::open(&dir).unwrap();
    for boot in 1..=3 {
        begin(&mut store, boot);
    }
    let record = store.record.encode();
    let mut killed = fs::read(dir.join(STATE.file)).unwrap();
    let found = killed.windows(record.len()).position(|window| window == record).unwrap();
    killed[found + 20] ^= 1;
    let (_base, damaged) = with_state(&killed, &dir);
    fs::remove_file(damaged.join(STATE.mark)).unwrap();
    assert!(is_corrupt(&open_error(&damaged), STATE.file));
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
