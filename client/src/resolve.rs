//! Names to addresses: anew for each contact, and never in the way of an address that is known.

use dashmap::DashMap;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// How long a name without a known address is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where addresses are known from before, those are taken up while the name service still thinks.
const PATIENCE_WITH_KNOWN: Duration = Duration::from_millis(250);

/// A look-up that has not ended by then may never end: the next contact begins another. While that
/// does not end either the next one has twice the time, so that threads do not add up.
const GIVEN_UP: Duration = Duration::from_secs(30);

type Found = Result<Vec<IpAddr>, String>;

type LookUp = dyn Fn(&str) -> Found + Send + Sync;

/// What is known of one name.
#[derive(Default)]
struct Name {
    /// What it last led to.
    known: Vec<IpAddr>,
    /// Where somebody answered last.
    answers: Option<IpAddr>,
    under_way: Option<(Instant, watch::Receiver<Option<Found>>)>,
    /// Look-ups that have not ended, with those that were given up.
    unended: u32,
}

/// Resolves names.
pub(crate) struct Resolver {
    look_up: Arc<LookUp>,
    names: DashMap<String, Arc<Mutex<Name>>>,
    given_up: Duration,
}

impl Resolver {
    /// By the name service of the system.
    pub(crate) fn of_system() -> Self {
        Self::new(|name| {
            let found = (name, 0).to_socket_addrs().map_err(|error| error.to_string())?;
            let mut addresses: Vec<IpAddr> = found.map(|at| at.ip()).collect();
            addresses.dedup();
            Ok(addresses)
        })
    }

    /// By this function, which may block.
    pub(crate) fn new(look_up: impl Fn(&str) -> Found + Send + Sync + 'static) -> Self {
        Self { look_up: Arc::new(look_up), names: DashMap::new(), given_up: GIVEN_UP }
    }

    /// The addresses of a name as they are now; those of before while nobody can say. Never empty.
    ///
    /// Ends within five seconds, and a quarter of one where addresses are known, whatever the name
    /// service does. Cancel safe: the look-up goes on, for whoever asks next.
    pub(crate) async fn resolve(&self, name: &str) -> Found {
        let entry = Arc::clone(&self.names.entry(name.to_owned()).or_default());
        let (known, mut heard) = self.begin(name, &entry);
        let patience = if known.is_empty() { PATIENCE } else { PATIENCE_WITH_KNOWN };
        let fresh = tokio::time::timeout(patience, heard.wait_for(Option::is_some)).await;
        let fresh = match fresh {
            Ok(Ok(found)) => found.clone().expect("waited for"),
            Ok(Err(_)) => Err("the look-up ended without a word".to_owned()),
            Err(_) => Err(format!("no answer within {} s", patience.as_secs_f32())),
        };
        let mut found = match fresh {
            Err(_) if !known.is_empty() => known,
            fresh => fresh?,
        };
        let answers = entry.lock().unwrap_or_else(PoisonError::into_inner).answers;
        if let Some(at) = found.iter().position(|ip| Some(*ip) == answers) {
            found[..=at].rotate_right(1);
        }
        Ok(found)
    }

    /// Somebody answers at this address of a name: it comes first while the name leads to it.
    pub(crate) fn answers(&self, name: &str, at: IpAddr) {
        let entry = Arc::clone(&self.names.entry(name.to_owned()).or_default());
        entry.lock().unwrap_or_else(PoisonError::into_inner).answers = Some(at);
    }

    /// Begins a look-up, or joins one that is under way, so that a name service which hangs holds
    /// one thread and not one for each try. It is a thread of its own: those of the runtime for
    /// blocking calls are waited for when the runtime ends.
    fn begin(
        &self,
        name: &str,
        entry: &Arc<Mutex<Name>>,
    ) -> (Vec<IpAddr>, watch::Receiver<Option<Found>>) {
        let mut this = entry.lock().unwrap_or_else(PoisonError::into_inner);
        let patience = 1 << this.unended.saturating_sub(1).min(16);
        if let Some((begun, heard)) = &this.under_way
            && begun.elapsed() < self.given_up * patience
            && heard.borrow().is_none()
            && heard.has_changed().is_ok()
        {
            return (this.known.clone(), heard.clone());
        }
        let (tell, heard) = watch::channel(None);
        this.under_way = Some((Instant::now(), heard.clone()));
        this.unended += 1;
        let (look_up, name, entry) =
            (Arc::clone(&self.look_up), name.to_owned(), Arc::clone(entry));
        let look = move || {
            let found = match look_up(&name) {
                Ok(addresses) if addresses.is_empty() => Err("it has no address".to_owned()),
                found => found,
            };
            let mut this = entry.lock().unwrap_or_else(PoisonError::into_inner);
            this.unended -= 1;
            if let Ok(addresses) = &found {
                this.known.clone_from(addresses);
            }
            tell.send_replace(Some(found));
        };
        // Without a thread the sender is dropped, and what is known counts.
        if thread::Builder::new().name("lockring-name".to_owned()).spawn(look).is_err() {
            this.unended -= 1;
        }
        (this.known.clone(), heard)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::mpsc;

    const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const B: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

    /// A resolver that says what it is sent, one answer for each look-up, and hangs without.
    fn scripted() -> (Resolver, mpsc::Sender<Found>, Arc<AtomicU32>) {
        let (tell, answers) = mpsc::channel::<Found>();
        let answers = Mutex::new(answers);
        let begun = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&begun);
        let resolver = Resolver::new(move |_| {
            count.fetch_add(1, Ordering::SeqCst);
            let answers = answers.lock().unwrap();
            answers.recv().unwrap_or_else(|_| Err("the test is over".to_owned()))
        });
        (resolver, tell, begun)
    }

    #[tokio::test]
    async fn a_name_is_looked_up_anew_each_time() {
        let (resolver, tell, _) = scripted();
        for addresses in [vec![A], vec![B, A], vec![B]] {
            tell.send(Ok(addresses.clone())).unwrap();
            assert_eq!(resolver.resolve("n").await, Ok(addresses));
        }
    }

    #[tokio::test]
    async fn the_address_that_answered_last_comes_first() {
        let (resolver, tell, _) = scripted();
        resolver.answers("n", B);
        for (found, wanted) in [(vec![A, B], vec![B, A]), (vec![A], vec![A])] {
            tell.send(Ok(found)).unwrap();
            assert_eq!(resolver.resolve("n").await, Ok(wanted));
        }
    }

    #[tokio::test]
    async fn what_was_known_counts_while_nobody_can_say() {
        let (resolver, tell, begun) = scripted();
        tell.send(Err("no such name".to_owned())).unwrap();
        assert_eq!(resolver.resolve("n").await, Err("no such name".to_owned()));
        tell.send(Ok(Vec::new())).unwrap();
        assert_eq!(resolver.resolve("n").await, Err("it has no address".to_owned()));
        tell.send(Ok(vec![A])).unwrap();
        assert_eq!(resolver.resolve("n").await, Ok(vec![A]));
        for nothing in [Err("the server failed".to_owned()), Ok(Vec::new())] {
            tell.send(nothing).unwrap();
            assert_eq!(resolver.resolve("n").await, Ok(vec![A]));
        }
        // It hangs: those who ask meanwhile share one look-up, and are not held up.
        let before = begun.load(Ordering::SeqCst);
        for _ in 0..3 {
            assert_eq!(resolver.resolve("n").await, Ok(vec![A]));
        }
        assert_eq!(begun.load(Ordering::SeqCst), before + 1);
        // What it says in the end is heard.
        tell.send(Ok(vec![B])).unwrap();
        hears_of_b(&resolver).await;
    }

    /// A late answer is taken up by those who ask after it.
    async fn hears_of_b(resolver: &Resolver) {
        let mut left = 100;
        while resolver.resolve("n").await != Ok(vec![B]) {
            left -= 1;
            assert!(left > 0, "the answer is never heard");
        }
    }

    /// A name service that never answers, over many times the patience with it.
    #[tokio::test]
    async fn look_ups_that_never_end_do_not_add_up() {
        let (mut resolver, tell, begun) = scripted();
        tell.send(Ok(vec![A])).unwrap();
        assert_eq!(resolver.resolve("n").await, Ok(vec![A]));
        resolver.given_up = Duration::from_millis(1);
        for _ in 0..8 {
            assert_eq!(resolver.resolve("n").await, Ok(vec![A]));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let mid = begun.load(Ordering::SeqCst);
        resolver.given_up = Duration::from_secs(1);
        for _ in 0..8 {
            assert_eq!(resolver.resolve("n").await, Ok(vec![A]));
        }
        assert_eq!(begun.load(Ordering::SeqCst), mid);
        // Once they end, the next contact asks at once.
        for _ in 0..mid + 4 {
            tell.send(Ok(vec![B])).unwrap();
        }
        hears_of_b(&resolver).await;
    }

    /// The name is not known, so that it is waited for, but not for ever.
    #[tokio::test]
    async fn a_look_up_that_hangs_is_given_up() {
        let (resolver, _tell, begun) = scripted();
        let (one, two) = tokio::join!(resolver.resolve("n"), resolver.resolve("n"));
        assert!(one.unwrap_err().contains("no answer") && two.is_err());
        assert_eq!(begun.load(Ordering::SeqCst), 1);
    }
}
