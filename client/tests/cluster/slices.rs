//! Long sets of runs, in slices whose reports are kept: a set that was stopped goes on where it
//! was, several processes can take parts of it, and any later one shows what all came to.

use lockring_core::testing::Trace;
use std::collections::BTreeMap;
use std::hash::Hasher;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fmt, fs};

/// Seeds of a slice. Slices begin at its multiples.
pub const SLICE: u64 = 100;

/// What some seeds came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub seeds: u64,
    /// How long it took, and how long that was in the runs.
    pub spent: Duration,
    pub time: Duration,
    /// How often what was reached.
    pub reached: BTreeMap<String, u64>,
    /// What each seed broke that broke something.
    pub broken: BTreeMap<u64, String>,
}

impl Tally {
    pub fn add(&mut self, other: Self) {
        self.seeds += other.seeds;
        self.spent += other.spent;
        self.time += other.time;
        for (what, n) in other.reached {
            *self.reached.entry(what).or_default() += n;
        }
        self.broken.extend(other.broken);
    }

    /// As the lines of a file, each a word and what belongs to it.
    fn to_text(&self, build: u64) -> String {
        let (spent, time) = (self.spent.as_millis(), self.time.as_millis());
        let mut text = format!("build {build:016x}\nseeds {}\n", self.seeds);
        text += &format!("spent {spent}\ntime {time}\n");
        for (seed, what) in &self.broken {
            text += &format!("broken {seed} {}\n", what.replace('\n', " "));
        }
        for (what, n) in &self.reached {
            text += &format!("reached {n} {what}\n");
        }
        text + "end\n"
    }

    /// `None`: no program has written this to its end.
    fn of_text(text: &str, build: u64) -> Option<Result<Self, OtherBuild>> {
        let mut tally = Self::default();
        let mut lines = text.lines();
        let its = lines.next()?.strip_prefix("build ")?;
        if its != format!("{build:016x}") {
            return Some(Err(OtherBuild));
        }
        for line in lines {
            let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
            let of_number = |rest: &str| {
                let (number, what) = rest.split_once(' ')?;
                Some((number.parse::<u64>().ok()?, what.to_owned()))
            };
            match word {
                "seeds" => tally.seeds = rest.parse().ok()?,
                "spent" => tally.spent = Duration::from_millis(rest.parse().ok()?),
                "time" => tally.time = Duration::from_millis(rest.parse().ok()?),
                "broken" => tally.broken.extend(of_number(rest)),
                "reached" => tally.reached.extend(of_number(rest).map(|(n, what)| (what, n))),
                "end" => return Some(Ok(tally)),
                _ => return None,
            }
        }
        None
    }
}

/// A report is of another program.
#[derive(Debug, PartialEq, Eq)]
struct OtherBuild;

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seeds, spent, time, .. } = self;
        let hours = time.as_secs_f64() / 3600.0;
        let rate = *seeds as f64 / spent.as_secs_f64().max(0.001);
        write!(f, "{seeds} seeds in {spent:.1?} of one core ({rate:.1} a second), ")?;
        writeln!(f, "{hours:.1} h of simulated time, reached")?;
        for (what, n) in &self.reached {
            writeln!(f, "{n:>12} {what}")?;
        }
        Ok(())
    }
}

/// The reports of a long set of runs.
pub struct Reports {
    folder: PathBuf,
    build: u64,
}

impl Reports {
    /// Those in a folder, which is made if need be. All are of this very program.
    pub fn new(folder: &Path) -> Self {
        fs::create_dir_all(folder).expect("a folder for reports");
        let program = std::env::current_exe().and_then(fs::read).expect("this program");
        let mut trace = Trace::default();
        trace.write(&program);
        Self { folder: folder.to_owned(), build: trace.finish() }
    }

    fn path(&self, first: u64) -> PathBuf {
        self.folder.join(format!("{first:08}"))
    }

    /// That of the slice that begins with a seed, if it was run.
    pub fn get(&self, first: u64) -> Option<Tally> {
        let path = self.path(first);
        let text = fs::read_to_string(&path).ok()?;
        match Tally::of_text(&text, self.build) {
            Some(Ok(tally)) => Some(tally),
            Some(Err(OtherBuild)) => panic!(
                "{} is of another build: name another folder, or remove this one",
                path.display()
            ),
            None => panic!("{} is no report of a slice: remove it", path.display()),
        }
    }

    /// Keeps that of a slice.
    pub fn put(&self, first: u64, tally: &Tally) {
        let path = self.path(first);
        let unfinished = path.with_extension(std::process::id().to_string());
        fs::write(&unfinished, tally.to_text(self.build)).expect("room for a report");
        fs::rename(&unfinished, &path).expect("a report in its place");
    }
}

#[test]
fn reports_are_read_as_they_were_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let reports = Reports::new(folder.path());
    let mut tally = Tally { seeds: 100, ..Tally::default() };
    (tally.spent, tally.time) = (Duration::from_millis(7), Duration::from_secs(9));
    tally.reached.insert("holds lost by force".to_owned(), 3);
    tally.broken.insert(104, "I1 at 3 s".to_owned());
    assert_eq!(reports.get(100), None);
    reports.put(100, &tally);
    assert_eq!(reports.get(100), Some(tally.clone()));
    // Half a report is none, and that of another program is not added up with these.
    let text = tally.to_text(5);
    assert_eq!(Tally::of_text(&text, 5), Some(Ok(tally.clone())));
    assert_eq!(Tally::of_text(&text, 6), Some(Err(OtherBuild)));
    assert_eq!(Tally::of_text(&text[..text.len() - 5], 5), None);
    tally.add(tally.clone());
    assert_eq!((tally.seeds, tally.reached["holds lost by force"]), (200, 6));
}
