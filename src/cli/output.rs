//! What verbs print: text for people, JSON for programs. A reader that went away is no error.

use std::io::Write;

use serde_json::{Value, json};

use super::Format;
use crate::problem::Problems;

/// Prints in the form that was asked for.
pub(super) struct Output(Format);

impl Output {
    pub(super) fn new(format: Format) -> Self {
        Self(format)
    }

    /// Prints what a verb found, in one of two forms.
    pub(super) fn print(&self, text: impl FnOnce() -> String, json: impl FnOnce() -> Value) {
        let printed = match self.0 {
            Format::Text => text(),
            Format::Json => format!("{:#}", json()),
        };
        let _ = writeln!(std::io::stdout(), "{}", printed.trim_end());
    }

    /// Prints problems: text to standard error, JSON to standard output.
    pub(super) fn problems(&self, problems: &Problems) {
        match self.0 {
            Format::Text => {
                let _ = writeln!(std::io::stderr(), "{problems}");
            }
            Format::Json => self.print(String::new, || json!({ "ok": false, "problems": problems })),
        }
    }
}
