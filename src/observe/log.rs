//! The log: fixed sentences with fields, on standard error.

use std::io;

use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::problem::{Problem, did_you_mean};

words! {
    /// How the log is written.
    pub enum Format {
        /// For eyes.
        Text = "text",
        /// One object a line.
        Json = "json",
    }
}

/// Whether [`init`] is what made the log that the process has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Installed {
    /// It is.
    Now,
    /// There was one, and it stays as it is.
    Before,
}

/// Installs the process's log. `level` is one word, for our own sentences; `RUST_LOG` replaces it as a whole.
///
/// The word never reaches the libraries, which stay at `warn`: at `debug` some of them write what a client sent.
///
/// # Errors
/// When `level` or `RUST_LOG` cannot be read.
pub fn init(level: &str, format: Format) -> Result<Installed, Problem> {
    let filter = filter(level, std::env::var("RUST_LOG").ok().as_deref())?;
    match tracing::subscriber::set_global_default(subscriber(filter, format, io::stderr)) {
        Ok(()) => Ok(Installed::Now),
        Err(_) => Ok(Installed::Before),
    }
}

/// Has the process tell of a panic by its place only. The words of a panic may quote what a client sent: a slice that ends
/// inside a character shows the whole text.
pub fn quote_no_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(place, "a defect stopped what a thread was doing");
    }));
}

fn filter(level: &str, rust_log: Option<&str>) -> Result<EnvFilter, Problem> {
    let own = own_level(level)?;
    if let Some(directives) = rust_log.filter(|directives| !directives.trim().is_empty()) {
        return EnvFilter::builder().parse(directives).map_err(|e| {
            Problem::new(format!("RUST_LOG cannot be read: {e}")).help("for example RUST_LOG=mantlet=debug")
        });
    }
    let libraries = own.min(LevelFilter::WARN);
    // What the resolver says of an odd answer names the name that was asked for.
    let resolver = "hickory_resolver=off,hickory_net=off,hickory_proto=off";
    Ok(EnvFilter::new(format!("{libraries},{resolver},mantlet={own}")))
}

fn own_level(level: &str) -> Result<LevelFilter, Problem> {
    const LEVELS: [(&str, LevelFilter); 6] = [
        ("off", LevelFilter::OFF),
        ("error", LevelFilter::ERROR),
        ("warn", LevelFilter::WARN),
        ("info", LevelFilter::INFO),
        ("debug", LevelFilter::DEBUG),
        ("trace", LevelFilter::TRACE),
    ];
    if let Some((_, found)) = LEVELS.iter().find(|(word, _)| *word == level) {
        return Ok(*found);
    }
    let help = match did_you_mean(level, LEVELS.map(|(word, _)| word)) {
        Some(word) => format!("did you mean `{word}`?"),
        None => "one of off, error, warn, info, debug, trace".to_owned(),
    };
    Err(Problem::new(format!("`{level}` is not a log level")).help(help))
}

fn subscriber<W>(filter: EnvFilter, format: Format, to: W) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    // Internal errors would go to standard error with `eprintln!`, which panics when that is closed.
    let base = tracing_subscriber::fmt().with_env_filter(filter).with_writer(to).log_internal_errors(false);
    match format {
        Format::Text => Box::new(base.finish()),
        Format::Json => {
            Box::new(base.json().flatten_event(true).with_current_span(false).with_span_list(false).finish())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What is written under `level` and `rust_log`.
    fn written(level: &str, rust_log: Option<&str>, format: Format) -> String {
        let kept = Kept::default();
        let to = kept.clone();
        let subscriber = subscriber(filter(level, rust_log).unwrap(), format, move || to.clone());
        tracing::subscriber::with_default(subscriber, || {
            tracing::error!(target: "mantlet::a", n = 1, "ours failed");
            tracing::info!(target: "mantlet::a", n = 2, "ours told");
            tracing::debug!(target: "mantlet::a", "ours chattered");
            tracing::error!(target: "h2", "theirs failed");
            tracing::debug!(target: "h2", "theirs chattered");
        });
        let bytes = kept.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn can_be_installed_twice() {
        init("info", Format::Text).unwrap();
        assert_eq!(init("debug", Format::Json).unwrap(), Installed::Before);
    }

    #[test]
    fn the_level_holds_for_our_own_sentences_only() {
        let info = written("info", None, Format::Text);
        assert!(info.contains("ours told") && info.contains("theirs failed") && !info.contains("chattered"), "{info}");
        let debug = written("debug", Some(" "), Format::Text);
        assert!(debug.contains("ours chattered") && !debug.contains("theirs chattered"), "{debug}");
        let error = written("error", None, Format::Text);
        assert!(error.contains("ours failed") && !error.contains("ours told"), "{error}");
        assert_eq!(written("off", None, Format::Text), "");
    }

    #[test]
    fn rust_log_replaces_the_level() {
        let text = written("off", Some("h2=debug"), Format::Text);
        assert!(text.contains("theirs chattered") && !text.contains("ours"), "{text}");
    }

    #[test]
    fn json_is_one_flat_object_a_line() {
        let text = written("info", None, Format::Json);
        let told: serde_json::Value = serde_json::from_str(text.lines().nth(1).unwrap()).unwrap();
        assert_eq!(told["level"], "INFO");
        assert_eq!(told["message"], "ours told");
        assert_eq!(told["n"], 2);
    }

    #[test]
    fn a_wrong_level_is_named_with_a_suggestion() {
        let problem = filter("inof", None).unwrap_err();
        assert_eq!(problem.to_string(), "`inof` is not a log level\n    help: did you mean `info`?");
        let problem = filter("info", Some("mantlet=loud")).unwrap_err();
        assert!(problem.what.starts_with("RUST_LOG cannot be read"), "{problem}");
    }
}
