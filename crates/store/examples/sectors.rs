//! Runs seeded schedules over a recorded store and looks at the images that power cuts could leave of them.
//!
//! `sectors <images> [<first seed>]` goes on from seed to seed until so many images were opened; `RIMSTONE_SEED` runs
//! one seed alone, and leaves the image that it fails with. With the feature `planted`, `RIMSTONE_PLANTED` plants a bug. Prints after each ten seeds which one comes next, so that a run can go on where another stopped.

use std::time::Instant;

use rimstone_store::sectors::{self, Effort, Summary};

/// How often it says how far it is, in seeds.
const REPORT_EVERY: u64 = 10;

fn report(summary: &Summary, first: u64, next: u64, began: Instant) {
    let Summary { images, power_cuts, fired, lost, events, acknowledged, .. } = summary;
    let Summary { compactions, trims, deleted, restarts, faults, .. } = summary;
    println!(
        "seeds {first} to {}: {images} images, {power_cuts} of power cuts, of which {fired} had lost something \
         ({} units, {} lengths, {} names); {events} changes and syncs, {acknowledged} acknowledged appends, \
         {compactions} compactions, {trims} trims, {deleted} topics deleted, {restarts} restarts, {faults} failed calls; \
         {:.0} images a second",
        next - 1,
        lost.units,
        lost.lengths,
        lost.names,
        *images as f64 / began.elapsed().as_secs_f64(),
    );
}

fn main() -> std::process::ExitCode {
    let number = |text: String| text.parse::<u64>().expect("a number");
    #[cfg(feature = "planted")]
    if let Some(name) = std::env::var("RIMSTONE_PLANTED").ok().filter(|name| !name.is_empty()) {
        match name.parse() {
            Ok(bug) => rimstone_store::planted::set(Some(bug)),
            Err(error) => {
                println!("RIMSTONE_PLANTED: {error}");
                return std::process::ExitCode::from(2);
            }
        }
        println!("A bug is planted: {name}");
    }
    let mut arguments = std::env::args().skip(1).map(number);
    let wanted = arguments.next().unwrap_or(1000);
    let alone = std::env::var("RIMSTONE_SEED").ok().map(number);
    let first = alone.or_else(|| arguments.next()).unwrap_or(1);
    let (began, mut all, mut seed) = (Instant::now(), Summary::default(), first);
    // What a seed that runs alone has found stays, to be looked at.
    let effort = Effort { keep: alone.is_some(), ..Effort::default() };
    while all.images < wanted {
        match sectors::run(seed, effort) {
            Ok(summary) => all += summary,
            Err(violation) => {
                report(&all, first, seed.max(first + 1), began);
                println!("{violation}");
                println!(
                    "again: RIMSTONE_SEED={seed} cargo run --release --package rimstone-store --features recording --example sectors"
                );
                return std::process::ExitCode::FAILURE;
            }
        }
        seed += 1;
        if alone.is_some() {
            break;
        }
        if (seed - first).is_multiple_of(REPORT_EVERY) {
            report(&all, first, seed, began);
        }
    }
    report(&all, first, seed, began);
    if all.fired == 0 {
        println!("no image has lost anything: nothing was tested");
        return std::process::ExitCode::FAILURE;
    }
    std::process::ExitCode::SUCCESS
}
