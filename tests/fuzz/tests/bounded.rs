//! Each target for a bounded number of inputs, from the same seeds each time.

use std::time::Duration;

use rimstone_fuzz::{TARGETS, runner};

/// No run of the tests takes this long.
const TIME_MAX: Duration = Duration::from_secs(300);

#[test]
fn nothing_is_found_in_a_bounded_number_of_inputs() {
    for target in &TARGETS {
        let done = runner::run(target, 1, target.in_tests, TIME_MAX)
            .unwrap_or_else(|seed| panic!("rimstone-fuzz {} --inputs 1 --seed {seed}", target.name));
        println!("{}: {done:?}", target.name);
        assert!(done.inputs > 0);
        // Neither everything nor nothing gets past the checks: else nothing is tested.
        let part = done.valid as f64 / done.inputs as f64;
        assert!((0.02..0.999).contains(&part), "{}: {done:?}", target.name);
    }
}
