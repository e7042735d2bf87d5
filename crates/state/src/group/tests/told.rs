//! From views to starts and stops.

use std::sync::Arc;

use rimstone_types::{GroupEpoch, TopicId};

use super::{
    common::places,
    session::{ToTell, Told},
};
use crate::group::{AssignmentValue, MemberView, Partitions};

fn set(of: &[&str]) -> Partitions {
    let mut set = Partitions::default();
    for (topic, index) in places(of) {
        set.insert(&topic, TopicId::CATALOG, index);
    }
    set
}

fn view(epoch: u32, owned: &[&str], stopping: &[&str]) -> MemberView {
    let assignment =
        AssignmentValue { owned: set(owned), stopping: set(stopping), ..AssignmentValue::default() };
    MemberView { epoch: GroupEpoch(epoch), assignment: Arc::new(assignment) }
}

fn tell(epoch: u32, start: &[&str], stop: &[&str]) -> ToTell {
    ToTell { epoch: GroupEpoch(epoch), start: places(start), stop: places(stop) }
}

#[test]
fn each_start_and_each_stop_is_told_once() {
    let mut told = Told::new(GroupEpoch(1), []);
    assert_eq!(told.show(&view(1, &["t:0", "t:1"], &[])), tell(1, &["t:0", "t:1"], &[]));
    assert_eq!(told.show(&view(1, &["t:0", "t:1"], &[])), tell(1, &[], &[]));
    assert_eq!(told.show(&view(1, &["t:0"], &["t:1"])), tell(1, &[], &["t:1"]));
    assert_eq!(told.show(&view(1, &["t:0"], &["t:1"])), tell(1, &[], &[]));
    assert!(told.sends(&places(&["t:0"])[0]) && !told.sends(&places(&["t:1"])[0]));
    assert_eq!(told.stopped(places(&["t:1"])), places(&["t:1"]));
    // Confirmed, and not durable yet.
    assert_eq!(told.show(&view(1, &["t:0"], &["t:1"])), tell(1, &[], &[]));
    assert_eq!(told.show(&view(3, &["t:0"], &[])), tell(3, &[], &[]));
    assert_eq!(told.epoch(), GroupEpoch(3));
    // It comes again.
    assert_eq!(told.show(&view(3, &["t:0", "t:1"], &[])), tell(3, &["t:1"], &[]));
    assert!(told.sends(&places(&["t:1"])[0]));
}

#[test]
fn what_was_claimed_is_not_started_and_every_stop_is_told() {
    let mut told = Told::new(GroupEpoch(4), places(&["t:0", "t:2"]));
    // t:1 was started and the start was lost; t:3 too, and it is to be stopped by now.
    assert_eq!(told.show(&view(4, &["t:0", "t:1"], &["t:2", "t:3"])), tell(4, &["t:1"], &["t:2", "t:3"]));
}

#[test]
fn another_stop_of_the_same_partition_is_told_though_the_views_between_were_passed_over() {
    let mut told = Told::new(GroupEpoch(1), places(&["t:0"]));
    assert_eq!(told.show(&view(1, &[], &["t:0"])), tell(1, &[], &["t:0"]));
    assert_eq!(told.stopped(places(&["t:0"])), places(&["t:0"]));
    // Released, granted again at epoch 5, to be stopped again: only the last view is shown.
    assert_eq!(told.show(&view(5, &[], &["t:0"])), tell(5, &[], &["t:0"]));
    assert_eq!(told.stopped(places(&["t:0"])), places(&["t:0"]));
}

#[test]
fn only_an_answer_counts_and_only_once() {
    let mut told = Told::new(GroupEpoch(1), places(&["t:0", "t:1"]));
    assert_eq!(told.stopped(places(&["t:0", "u:7"])), [], "it was not asked");
    assert!(told.sends(&places(&["t:0"])[0]));
    told.show(&view(1, &["t:1"], &["t:0"]));
    assert_eq!(told.stopped(places(&["t:0", "t:1", "t:0"])), places(&["t:0"]));
    assert_eq!(told.stopped(places(&["t:0"])), []);
    // Had the last answer been kept for later, it would confirm this stop before the client has heard of it.
    told.show(&view(2, &["t:0", "t:1"], &[]));
    assert_eq!(told.show(&view(2, &["t:1"], &["t:0"])), tell(2, &[], &["t:0"]));
    assert_eq!(told.stopped(places(&["t:0"])), places(&["t:0"]));
}
