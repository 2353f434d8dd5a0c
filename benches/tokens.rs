//! How long it takes to know a token whose verdict is remembered: `cargo bench --bench tokens`

#![allow(clippy::expect_used, clippy::panic, reason = "a benchmark that cannot be set up has failed")]

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use divan::{Bencher, black_box};
use mantlet::config::settings::Tokens as Limits;
use mantlet::observe::metrics::Metrics;
use mantlet::policy::TokenVerdict;
use mantlet::stack::tokens::{Remembered, Tokens};
use mantlet::units::Period;

fn main() {
    divan::main();
}

/// With so many other tokens beside it.
#[divan::bench(args = [1, 100, 10_000])]
fn warm_verdict(bencher: Bencher<'_, '_>, known: usize) {
    // Longer than the gateway file allows, and longer than this runs.
    let limits = Limits { capacity: 2 * known, positive: Period::seconds(3600), ..Limits::default() };
    let tokens = Arc::new(Tokens::new(&limits, Metrics::new(&[])).expect("the system gives randomness"));
    let runtime = tokio::runtime::Builder::new_current_thread().build_local(Default::default()).expect("a runtime");
    for number in 1..known {
        runtime.block_on(ask(&tokens, &format!("syt_other_{number}")));
    }
    runtime.block_on(ask(&tokens, TOKEN));
    bencher.bench_local(|| {
        let verdict = pin!(ask(&tokens, black_box(TOKEN)));
        match verdict.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(verdict) => verdict,
            Poll::Pending => panic!("it was forgotten"),
        }
    });
}

async fn ask(tokens: &Arc<Tokens>, token: &str) -> TokenVerdict {
    let key = tokens.key(token.as_bytes(), b"127.0.0.1");
    tokens.verdict(key, || async { Remembered::Valid { user: "@alice:example.org".into(), guest: false } }).await
}

const TOKEN: &str = "syt_YWxpY2U_abcdefghijklmnopqrst_0a1b2c";
