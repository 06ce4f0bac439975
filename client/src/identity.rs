//! Which bundle of certificates to show: the first of `--identity`, `LOCKRING_IDENTITY`, the
//! URL's parameter, the builder's setting and the current context.

use crate::context::{ContextError, Contexts, Environment};
use std::path::{Path, PathBuf};

/// What a caller says about the identity, apart from the environment.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct IdentityChoice<'a> {
    /// `--identity FILE`.
    pub(crate) argument: Option<&'a Path>,
    /// The URL's `identity` parameter.
    pub(crate) url: Option<&'a Path>,
    /// The program's own setting, through the client's builder.
    pub(crate) builder: Option<&'a Path>,
}

/// Why there is no identity to use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResolveError {
    /// Nobody names one.
    #[error(
        "no identity to connect with: none given by --identity FILE, LOCKRING_IDENTITY, \
         the URL (?identity=FILE) or the client's builder, and {context}. A node writes one to \
         client.pem in its data directory"
    )]
    Missing {
        /// Why the current context names none.
        context: String,
    },
    /// The current context would name one, but is broken.
    #[error(transparent)]
    Context(#[from] ContextError),
}

/// Finds the file of the identity to use; that it exists is not known yet. The current context is
/// looked at only if nothing else names one, so a broken one never stands in the way of an explicit
/// choice.
///
/// # Errors
/// When nothing names one; the error lists all that was tried.
pub(crate) fn resolve_identity(
    choice: IdentityChoice<'_>,
    environment: &Environment,
) -> Result<PathBuf, ResolveError> {
    let named = choice.argument.or(environment.identity.as_deref());
    if let Some(path) = named.or(choice.url).or(choice.builder) {
        return Ok(path.to_owned());
    }
    let missing = |context: String| ResolveError::Missing { context };
    let contexts = Contexts::new(environment).map_err(|error| missing(error.to_string()))?;
    let Some(name) = contexts.current()? else {
        let file = contexts.current_path();
        return Err(missing(format!("no context is current ({} does not exist)", file.display())));
    };
    Ok(contexts.read(&name)?.identity)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::Context;

    fn environment(home: &Path, identity: Option<&str>) -> Environment {
        Environment {
            identity: identity.map(PathBuf::from),
            config_home: None,
            home: Some(home.to_owned()),
        }
    }

    #[test]
    fn the_first_that_names_one_wins() {
        let home = tempfile::tempdir().unwrap();
        let set = environment(home.path(), Some("environment"));
        let unset = environment(home.path(), None);
        let contexts = Contexts::new(&unset).unwrap();
        let context =
            Context { endpoints: vec!["a".to_owned()], identity: "context".into(), pid: None };
        contexts.write("dev", &context).unwrap();
        contexts.make_current("dev").unwrap();

        let [argument, url, builder] = ["argument", "url", "builder"].map(|p| Some(Path::new(p)));
        let mut choice = IdentityChoice { argument, url, builder };
        let expect = |choice, environment, path: &str| {
            assert_eq!(resolve_identity(choice, environment).unwrap(), Path::new(path));
        };
        expect(choice, &set, "argument");
        choice.argument = None;
        expect(choice, &set, "environment");
        expect(choice, &unset, "url");
        choice.url = None;
        expect(choice, &unset, "builder");
        choice.builder = None;
        expect(choice, &unset, "context");
    }

    #[test]
    fn the_error_lists_what_was_tried() {
        let home = tempfile::tempdir().unwrap();
        let choice = IdentityChoice::default();
        let error = resolve_identity(choice, &environment(home.path(), None)).unwrap_err();
        let message = error.to_string();
        for tried in ["--identity", "LOCKRING_IDENTITY", "?identity=", "builder", "current"] {
            assert!(message.contains(tried), "{message}");
        }
        let message = resolve_identity(choice, &Environment::default()).unwrap_err().to_string();
        assert!(message.contains("set HOME"), "{message}");
    }

    #[test]
    fn a_broken_context_matters_only_when_needed() {
        let home = tempfile::tempdir().unwrap();
        let environment = environment(home.path(), None);
        let contexts = Contexts::new(&environment).unwrap();
        let context =
            Context { endpoints: vec!["a".to_owned()], identity: "context".into(), pid: None };
        contexts.write("dev", &context).unwrap();
        contexts.make_current("dev").unwrap();
        contexts.remove("dev").unwrap();
        let nothing = IdentityChoice::default();
        let error = resolve_identity(nothing, &environment).unwrap_err().to_string();
        assert!(error.contains("dev.toml"), "{error}");
        let choice = IdentityChoice { url: Some(Path::new("url")), ..nothing };
        assert!(resolve_identity(choice, &environment).is_ok());
    }
}
