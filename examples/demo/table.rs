//! The table: what was seen on either way, and whether that is as it should be.

use std::fmt::Write;

/// Rows under headings, in the order they were asked.
#[derive(Default)]
pub struct Table {
    lines: Vec<Line>,
}

enum Line {
    Heading(&'static str),
    Row(Row),
}

/// One question with both answers.
pub struct Row {
    /// The leak's number in the ledger; empty where there is none.
    pub leak: &'static str,
    /// What was asked.
    pub asked: String,
    /// What came without Mantlet.
    pub without: Seen,
    /// What came through it.
    pub through: Seen,
    /// How Mantlet should leave it.
    pub want: Want,
}

/// An answer in a few words, and what it comes to.
pub struct Seen {
    state: State,
    said: String,
}

/// What an answer comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It tells, or does, what was asked for.
    Open,
    /// It is a refusal, and tells nothing.
    Closed,
    /// There is nothing to look at on this way.
    Absent,
    /// It is neither: nothing can be said.
    Broken,
}

/// How a row should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// Open without Mantlet, closed through it.
    Closed,
    /// Open either way.
    Open,
}

/// Whether the table is painted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colours {
    /// For a terminal.
    Ansi,
    /// For files, pipes and who does not want them.
    None,
}

impl Seen {
    /// Makes one.
    pub fn new(state: State, said: impl Into<String>) -> Seen {
        Seen { state, said: said.into() }
    }
}

impl Row {
    /// Why this row is not as it should be, if it is not.
    fn fault(&self) -> Option<&'static str> {
        use State::{Absent, Broken, Closed, Open};
        match (self.want, self.without.state, self.through.state) {
            (Want::Closed, Open | Absent, Closed) | (Want::Open, Open, Open) => None,
            (_, Broken, _) => Some("the answer without Mantlet makes no sense"),
            (_, _, Broken) => Some("the answer through Mantlet makes no sense"),
            (_, _, Absent) => Some("through Mantlet there was nothing to look at"),
            (_, Closed, _) => Some("it is closed without Mantlet too, so the row shows nothing"),
            (Want::Open, Absent, _) => Some("without Mantlet there was nothing to look at"),
            (Want::Closed, Open | Absent, Open) => Some("Mantlet leaves it open"),
            (Want::Open, Open, Closed) => Some("Mantlet closes what has to stay open"),
        }
    }

    /// The row's last word: how it is through Mantlet.
    fn verdict(&self) -> &'static str {
        match self.through.state {
            State::Open => "OPEN",
            State::Closed => "closed",
            State::Absent | State::Broken => "?",
        }
    }
}

impl Table {
    /// Begins a group of rows.
    pub fn heading(&mut self, heading: &'static str) {
        self.lines.push(Line::Heading(heading));
    }

    /// Adds a row.
    pub fn row(&mut self, row: Row) {
        self.lines.push(Line::Row(row));
    }

    /// How many rows are not as they should be; a table without rows proves nothing, and counts as one.
    pub fn faults(&self) -> usize {
        match self.rows().count() {
            0 => 1,
            _ => self.rows().filter(|row| row.fault().is_some()).count(),
        }
    }

    /// The whole table with its summary.
    pub fn render(&self, colours: Colours) -> String {
        let width = |title: &str, of: fn(&Row) -> &str| {
            self.rows().map(|row| of(row).chars().count()).chain([title.len()]).max().unwrap_or_default()
        };
        let asked = width(ASKED, |row| &row.asked);
        let without = width(WITHOUT, |row| &row.without.said);
        let through = width(THROUGH, |row| &row.through.said);
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = writeln!(text, "leak  {ASKED:asked$}  {WITHOUT:without$}  {THROUGH:through$}  so it is");
        for line in &self.lines {
            let _ = match line {
                Line::Heading(heading) => writeln!(text, "\n{}", paint(heading, BOLD, colours)),
                Line::Row(row) => {
                    let paint_in = if row.fault().is_none() { GREEN } else { RED };
                    let verdict = paint(row.verdict(), paint_in, colours);
                    let (a, b, c) = (&row.asked, &row.without.said, &row.through.said);
                    let line = format!("{:<4}  {a:asked$}  {b:without$}  {c:through$}  {verdict}", row.leak);
                    match row.fault() {
                        None => writeln!(text, "{line}"),
                        Some(fault) => writeln!(text, "{line}\n      ^ {}", paint(fault, RED, colours)),
                    }
                }
            };
        }
        let (closed, open) = (self.count(Want::Closed), self.count(Want::Open));
        let summary = match self.faults() {
            0 => paint(
                &format!(
                    "All {closed} rows that should be closed are closed, and the {open} that have to stay open are open."
                ),
                GREEN,
                colours,
            ),
            faults => paint(&format!("{faults} of {} rows are not as they should be.", closed + open), RED, colours),
        };
        let _ = writeln!(text, "\n{summary}");
        text
    }

    fn rows(&self) -> impl Iterator<Item = &Row> {
        self.lines.iter().filter_map(|line| match line {
            Line::Heading(_) => None,
            Line::Row(row) => Some(row),
        })
    }

    fn count(&self, want: Want) -> usize {
        self.rows().filter(|row| row.want == want).count()
    }
}

fn paint(text: &str, colour: &str, colours: Colours) -> String {
    match colours {
        Colours::Ansi => format!("\x1b[{colour}m{text}\x1b[0m"),
        Colours::None => text.into(),
    }
}

const ASKED: &str = "asked (paths are below /_matrix)";
const WITHOUT: &str = "without Mantlet";
const THROUGH: &str = "through Mantlet";

const BOLD: &str = "1";
const RED: &str = "31";
const GREEN: &str = "32";

#[cfg(test)]
mod tests {
    use super::*;
    use State::{Absent, Broken, Closed, Open};

    fn table(want: Want, without: State, through: State) -> Table {
        let mut table = Table::default();
        let (without, through) = (Seen::new(without, "200"), Seen::new(through, "401"));
        table.row(Row { leak: "L01", asked: "GET /x".into(), without, through, want });
        table
    }

    #[test]
    fn a_leak_counts_as_closed_only_if_it_was_open_without_mantlet() {
        for without in [Open, Closed, Absent, Broken] {
            for through in [Open, Closed, Absent, Broken] {
                let good = matches!((without, through), (Open | Absent, Closed));
                assert_eq!(table(Want::Closed, without, through).faults() == 0, good, "{without:?} {through:?}");
            }
        }
    }

    #[test]
    fn closing_everything_is_a_fault() {
        for without in [Open, Closed, Absent, Broken] {
            for through in [Open, Closed, Absent, Broken] {
                let good = (without, through) == (Open, Open);
                assert_eq!(table(Want::Open, without, through).faults() == 0, good, "{without:?} {through:?}");
            }
        }
        assert_eq!(Table::default().faults(), 1);
    }

    #[test]
    fn a_fault_is_told_below_its_row_and_in_the_summary() {
        let text = table(Want::Closed, Open, Open).render(Colours::None);
        assert!(text.contains("  OPEN\n      ^ Mantlet leaves it open\n"), "{text}");
        assert!(text.ends_with("\n1 of 1 rows are not as they should be.\n"), "{text}");
    }

    #[test]
    fn columns_are_aligned_and_plain_unless_painted() {
        let mut table = table(Want::Closed, Open, Closed);
        let (without, through) = (Seen::new(Open, "200, lists the room"), Seen::new(Open, "200"));
        table.row(Row { leak: "", asked: "a user asks".into(), without, through, want: Want::Open });
        let text = table.render(Colours::None);
        let column = |line: &str, word: &str| line.find(word).unwrap_or_else(|| panic!("{word} in {line}"));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(column(lines[0], "so it is"), column(lines[1], "closed"));
        assert_eq!(column(lines[0], "so it is"), column(lines[2], "OPEN"));
        assert!(!text.contains('\x1b') && table.render(Colours::Ansi).contains("\x1b[32mclosed\x1b[0m"));
    }
}
