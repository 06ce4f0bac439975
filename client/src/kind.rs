//! Kinds of errors.

/// What kind of error it is.
///
/// ```no_run
/// # async fn example(client: lockring_client::Client) {
/// use lockring_client::ErrorKind;
/// match client.try_lock("").await.map_err(|error| error.kind()) {
///     Err(ErrorKind::Invalid) => println!("a key has 1 to 512 bytes"),
///     Err(kind) => println!("it failed otherwise: {kind:?}"),
///     Ok(_) => {}
/// }
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The wait's deadline passed. The lock is not held.
    Timeout,
    /// No node answered for too long. What was asked may have taken effect: a claim is undone as
    /// soon as there is contact again, a forced release is neither undone nor repeated.
    Unreachable,
    /// The hold was lost: its lease ended, or an operator released it.
    Lost,
    /// The key is in use in another way, as a semaphore or with another capacity. Nothing changed.
    Conflict,
    /// A limit of the session or the node is reached. Nothing changed.
    Quota,
    /// The node is stopping. Nothing changed.
    Draining,
    /// The identity may not do this. Nothing changed.
    Denied,
    /// The request breaks a rule, as a key of no bytes. Nothing changed.
    Invalid,
    /// The re-entrant owner has entered as often as it may. Nothing changed.
    TooDeep,
    /// The client was closed.
    Closed,
    /// The address, the identity or a file cannot be used.
    Config,
    /// The node speaks another version of the wire. Nothing changed.
    Version,
}
