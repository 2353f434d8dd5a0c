use super::entry::time;
use super::*;
use crate::matrix::{Host, ServerName};
use crate::policy::Cause;

fn contact(to: &str, cause: Cause) -> Contact {
    Contact::server(&ServerName::parse(to).unwrap(), cause, Door::Federation)
}

fn ledger(most: usize, store: Option<&Store>) -> Arc<Ledger> {
    Ledger::new(most, store.cloned(), &Metrics::new(&[]))
}

fn lines(ledger: &Ledger) -> Vec<String> {
    let line = |entry: Entry| {
        let Entry { destination, cause, verdict, count, bytes_out, bytes_in, .. } = entry;
        format!("{destination} {} {verdict} {count} {bytes_out} {bytes_in}", cause.as_str())
    };
    ledger.entries().into_iter().map(line).collect()
}

/// A line whose last time was then.
fn seen(ledger: &Ledger, line: &str, last: u64) {
    let tally = Tally { first: 0, last, count: 1, out: 0, back: 0, is_saved: false };
    let mut rows = ledger.rows();
    rows.add(Key::read(line).unwrap(), tally, last);
    ledger.make_room(&mut rows);
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
}

#[test]
fn one_server_for_one_reason_with_one_outcome_is_one_line() {
    let ledger = ledger(10, None);
    ledger.note(contact("A.example", Cause::Keys), Verdict::Passed, 1, 10);
    ledger.note(contact("a.example", Cause::Keys), Verdict::Passed, 2, 20);
    ledger.note(contact("a.example", Cause::Keys), Verdict::Failed, 3, 0);
    ledger.note(contact("a.example:8448", Cause::Federation), Verdict::Passed, 4, 40);
    ledger.note(contact("[2001:DB8::1]:8448", Cause::Federation), Verdict::Passed, 0, 0);
    let host = Host::Name("push.example".into());
    ledger.note(Contact::host(&host, 443, Cause::Other, Door::Proxy), Verdict::Tunnelled, 5, 50);
    assert_eq!(
        lines(&ledger),
        [
            "push.example:443 other tunnelled 1 5 50",
            "a.example keys passed 2 3 30",
            "a.example keys failed 1 3 0",
            "[2001:db8::1]:8448 federation passed 1 0 0",
            "a.example:8448 federation passed 1 4 40",
        ]
    );
}

#[test]
fn a_full_ledger_forgets_who_was_not_seen_for_longest() {
    let ledger = ledger(100, None);
    (0..100).for_each(|number| seen(&ledger, &format!("keys federation passed s{number}"), number));
    ledger.note(contact("s1", Cause::Keys), Verdict::Passed, 0, 0);
    assert_eq!((ledger.entries().len(), ledger.metrics.forgotten.get()), (100, 0));
    ledger.note(contact("new", Cause::Keys), Verdict::Passed, 0, 0);
    let left: Vec<_> = ledger.entries().into_iter().map(|entry| entry.destination).collect();
    assert_eq!((left.len(), ledger.metrics.forgotten.get(), ledger.metrics.lines.get()), (90, 11, 90));
    assert!(left.contains(&"s1".to_owned()) && left.contains(&"new".to_owned()) && left.contains(&"s12".to_owned()));
    assert!(!left.contains(&"s0".to_owned()) && !left.contains(&"s11".to_owned()));
    // Also where all were seen in one second.
    let ledger = self::ledger(3, None);
    for name in ["a", "b", "c", "d", "e"] {
        ledger.note(contact(name, Cause::Keys), Verdict::Passed, 0, 0);
        assert!((1..=3).contains(&ledger.entries().len()));
    }
}

#[test]
fn those_who_were_not_seen_for_longest_go_before_any_that_were_seen_later() {
    let ledger = ledger(100, None);
    (0..100).for_each(|number| seen(&ledger, &format!("keys federation passed s{number}"), u64::from(number % 20 > 0)));
    seen(&ledger, "keys federation passed new", 1);
    let left: Vec<_> = ledger.entries().into_iter().map(|entry| entry.destination).collect();
    assert_eq!(left.len(), 90);
    for old in ["s0", "s20", "s40", "s60", "s80"] {
        assert!(!left.contains(&old.to_owned()), "{left:?}");
    }
}

#[test]
fn whoever_makes_up_names_pushes_nothing_else_out_also_not_across_a_restart() {
    const RARE: [&str; 3] =
        ["statistics proxy answered a:443", "identity proxy denied b:443", "keys federation passed c"];
    let (dir, metrics) = (tempfile::tempdir().unwrap(), Metrics::new(&[]));
    let path = dir.path().join("store.redb");
    let keys = |ledger: &Ledger| {
        let mut keys: Vec<_> = ledger.rows().known.keys().map(ToString::to_string).collect();
        keys.sort();
        keys
    };
    let (store, thread) = Store::start(&path, &metrics).unwrap();
    let before = ledger(50, Some(&store));
    RARE.iter().for_each(|line| seen(&before, line, 1));
    for number in 0..1000 {
        seen(&before, &format!("keys federation failed made-up{number}"), 2 + number / 100);
        if number % 40 == 0 {
            runtime().block_on(before.save(&store));
        }
    }
    before.save_last();
    let left = keys(&before);
    assert!((30..=50).contains(&left.len()) && RARE.iter().all(|line| left.contains(&(*line).to_owned())), "{left:?}");
    drop(store);
    let most = before.most;
    drop(before);
    thread.join().unwrap();
    // The file has no more, so that it does not have to choose either.
    let (store, _thread) = Store::start(&path, &metrics).unwrap();
    let after = ledger(most, Some(&store));
    runtime().block_on(after.save(&store));
    assert_eq!(keys(&after), left);
    // A file with more than may be kept is cut by the same measure.
    let fewer = ledger(10, Some(&store));
    runtime().block_on(fewer.save(&store));
    let left = keys(&fewer);
    assert!(left.len() <= 10 && RARE.iter().all(|line| left.contains(&(*line).to_owned())), "{left:?}");
}

#[test]
fn what_was_seen_before_a_restart_is_added_to_what_is_seen_after_it() {
    let (dir, metrics) = (tempfile::tempdir().unwrap(), Metrics::new(&[]));
    let path = dir.path().join("store.redb");
    for round in 1..=3 {
        let (store, thread) = Store::start(&path, &metrics).unwrap();
        let ledger = ledger(10, Some(&store));
        ledger.note(contact("a.example", Cause::Keys), Verdict::Passed, 1, 10);
        runtime().block_on(ledger.save(&store));
        assert_eq!(lines(&ledger), [format!("a.example keys passed {} {} {}", 2 * round - 1, round, 10 * round)]);
        // At the end, nobody waits for the next time.
        ledger.note(contact("a.example", Cause::Keys), Verdict::Passed, 0, 0);
        ledger.save_last();
        drop((ledger, store));
        thread.join().unwrap();
    }
}

#[test]
fn what_could_not_be_saved_is_saved_once_it_can_be() {
    let (dir, metrics) = (tempfile::tempdir().unwrap(), Metrics::new(&[]));
    let nowhere = dir.path().join("no/such/directory.redb");
    let (store, _thread) = Store::start(&nowhere, &metrics).unwrap();
    let ledger = ledger(10, Some(&store));
    ledger.note(contact("a.example", Cause::Keys), Verdict::Passed, 1, 10);
    runtime().block_on(ledger.save(&store));
    // Nothing was read, so nothing may be written over what may be there.
    assert!(!ledger.rows().is_loaded);
    ledger.load(Vec::new());
    runtime().block_on(ledger.save(&store));
    assert_eq!(ledger.rows().take_unsaved().len(), 1);
    assert_eq!(lines(&ledger), ["a.example keys passed 1 1 10"]);
}

#[test]
fn a_line_that_cannot_be_read_is_left_out_and_the_rest_is_kept() {
    let ledger = ledger(2, None);
    let row = |key: &str, age, value: Vec<u8>| Row { key: key.into(), age, value };
    let good = Tally { first: 1, last: 9, count: 2, out: 3, back: 4, is_saved: true };
    assert_eq!(Tally::read(9, &good.value()), Some(good));
    ledger.load(vec![
        row("keys federation passed old.example", 1, good.value()),
        row("keys federation passed a.example", 9, good.value()),
        row("keys federation passed b.example", 9, vec![0; 31]),
        row("gossip federation passed c.example", 9, good.value()),
        row("keys window passed d.example", 9, good.value()),
        row("keys", 9, good.value()),
        row("other proxy denied e.example:443", 8, good.value()),
    ]);
    // Of too many, the newest.
    assert_eq!(lines(&ledger), ["e.example:443 other denied 2 3 4", "a.example keys passed 2 3 4"]);
    assert_eq!(ledger.rows().take_unsaved(), []);
}

#[test]
fn a_ledger_of_no_lines_only_counts() {
    let ledger = ledger(0, None);
    ledger.note(contact("a.example", Cause::Keys), Verdict::Passed, 1, 10);
    assert!(ledger.entries().is_empty());
}

#[test]
fn a_last_time_in_the_future_gives_way_to_the_present_and_counts_as_none() {
    let day = Duration::from_secs(24 * 3600);
    let now = seconds(SystemTime::now());
    let ledger = ledger(100, None);
    seen(&ledger, "keys federation passed a.example", now + day.as_secs());
    let last = |name: &str| {
        let line = ledger.entries().into_iter().find(|entry| entry.destination == name);
        line.map(|entry| seconds(entry.last_seen))
    };
    assert_eq!(last("a.example"), Some(now + day.as_secs()));
    ledger.note(contact("a.example", Cause::Keys), Verdict::Passed, 0, 0);
    let noted = last("a.example").unwrap();
    assert!((now..now + 60).contains(&noted), "{noted} {now}");
    // Also where it is what the store has, and the line was seen since the start.
    let tally = |last| Tally { first: 1, last, count: 1, out: 0, back: 0, is_saved: true };
    let kept =
        |name: &str, last| Row { key: format!("keys federation passed {name}"), age: last, value: tally(last).value() };
    ledger.load(vec![
        kept("a.example", now + day.as_secs()),
        kept("b.example", now + day.as_secs()),
        kept("c.example", 7),
    ]);
    assert_eq!((last("a.example"), last("c.example")), (Some(noted), Some(7)));
    // It goes before what was seen long ago.
    (0..98).for_each(|number| seen(&ledger, &format!("keys federation passed s{number}"), 8 + number));
    assert_eq!((ledger.entries().len(), last("b.example"), last("c.example")), (90, None, None));
    assert_eq!((last("s8"), last("s9"), last("a.example")), (None, Some(17), Some(noted)));
    // Where neither is in the past, it was seen now.
    let mut first = tally(5);
    first.add(tally(9), 3);
    assert_eq!((first.last, first.first, first.count), (3, 1, 2));
}

#[test]
fn a_clock_that_went_wrong_is_no_reason_to_panic() {
    for seconds in [0, 1_700_000_000, u64::MAX] {
        let text = humantime::format_rfc3339_seconds(time(seconds)).to_string();
        assert!(humantime::parse_rfc3339(&text).is_ok(), "{text}");
    }
}
