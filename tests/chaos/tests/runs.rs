//! The whole chain: a run is brought to its end, and one whose server loses what it acknowledged is refused.
#![forbid(unsafe_code)]
// A panic is how a test fails.
#![allow(clippy::unwrap_used)]

use rimstone_chaos::schedule::find;
use rimstone_tests::skip::skip;

const SEED: u64 = 11;

#[tokio::test(flavor = "multi_thread")]
async fn kills_are_survived() {
    let home = tempfile::tempdir().unwrap();
    let report = find("kills").unwrap().run(&home.path().join("run"), SEED).await.unwrap();
    println!("{report:#?}");
    assert_eq!(report.wrong, Vec::<String>::new());
    assert!(report.fired["SIGKILL"] > 10);
    let counts = report.counts;
    assert!(counts.acknowledged > 500 && counts.polled > 500 && counts.commits > 10, "{counts:?}");
    assert!(counts.duplicates > 10 && counts.unknown + counts.refused > 0, "{counts:?}");
}

/// Topics that acknowledge what is only written do lose it when the power goes: here that must be seen.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_acknowledges_before_it_syncs_is_caught() {
    let schedule = find("power").unwrap();
    if let Some(why) = (schedule.why_not)() {
        return skip("chaos", &why);
    }
    let home = tempfile::tempdir().unwrap();
    let early = [("topic_defaults.rimstone.ack", "written")];
    let report = schedule.run_with(&home.path().join("run"), SEED, &early).await.unwrap();
    let lost = report
        .wrong
        .iter()
        .filter(|wrong| wrong.starts_with("rule 3") && wrong.contains("is not in the log"));
    assert!(lost.count() > 0, "{:#?}", report.wrong);
    assert!(report.wrong.iter().any(|wrong| wrong.starts_with("rule 7")), "{:#?}", report.wrong);
}
