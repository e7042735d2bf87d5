use super::*;
use crate::{
    files::{self, change},
    recording::{CallKind, Fault, Recorder},
};

struct Place {
    directory: tempfile::TempDir,
    recorder: std::sync::Arc<Recorder>,
}

fn place() -> Place {
    let directory = tempfile::tempdir().unwrap();
    let recorder = Recorder::install(directory.path()).unwrap();
    Place { directory, recorder }
}

impl Place {
    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().canonicalize().unwrap().join(name)
    }

    fn sync_directory(&self) {
        files::sync_directory(&self.path("")).unwrap();
    }

    /// Different contents of a file (`None`: it is not there) in many images at the end.
    fn outcomes(&self, name: &str) -> BTreeSet<Option<Vec<u8>>> {
        let journal = self.recorder.journal();
        self.outcomes_at(&journal, journal.events.len(), name)
    }

    fn outcomes_at(&self, journal: &Journal, at: usize, name: &str) -> BTreeSet<Option<Vec<u8>>> {
        let mut images = Images::new(journal);
        images.advance(at);
        let draws = (0..400).map(|seed| images.power_cut(seed));
        draws.map(|image| image.files.get(Path::new(name)).map(|(_, bytes)| bytes.clone())).collect()
    }
}

fn filled(byte: u8, units: usize) -> Vec<u8> {
    vec![byte; units * UNIT]
}

#[test]
fn what_a_sync_covers_is_there_and_of_the_rest_any_part() {
    let place = place();
    let file = change::create_new(&place.path("f")).unwrap();
    place.sync_directory();
    change::write_at(&file, &filled(1, 3), 0).unwrap();
    change::sync_data(&file).unwrap();
    assert_eq!(place.outcomes("f"), BTreeSet::from([Some(filled(1, 3))]));
    change::write_at(&file, &filled(2, 2), UNIT as u64).unwrap();
    // Each of two units old or new: in the length nothing changes.
    assert_eq!(place.outcomes("f").len(), 4);
    change::write_at(&file, &filled(3, 1), 3 * UNIT as u64).unwrap();
    let outcomes = place.outcomes("f");
    assert!(outcomes.contains(&Some([filled(1, 3), filled(0, 1)].concat())), "longer, and zeros");
    assert!(outcomes.contains(&Some([filled(1, 1), filled(2, 2)].concat())), "not longer");
    // What was begun before a write does not cover it.
    let journal = place.recorder.journal();
    assert!(matches!(journal.events[3], Event::SyncBegun(_) | Event::Write { .. }));
}

#[test]
fn a_write_is_torn_in_the_middle() {
    let place = place();
    let file = change::create_new(&place.path("f")).unwrap();
    place.sync_directory();
    change::write_at(&file, b"0123456789", 0).unwrap();
    let journal = place.recorder.journal();
    let at = journal.events.iter().position(|event| matches!(event, Event::Write { .. })).unwrap();
    let outcomes = place.outcomes_at(&journal, at, "f");
    assert!(outcomes.contains(&Some(b"0123".to_vec())), "{outcomes:?}");
    assert!(outcomes.contains(&Some(Vec::new())));
}

#[test]
fn a_new_name_needs_a_sync_of_its_directory() {
    let place = place();
    let file = change::create_new(&place.path("f")).unwrap();
    change::write_at(&file, b"x", 0).unwrap();
    change::sync_all(&file).unwrap();
    assert_eq!(place.outcomes("f"), BTreeSet::from([None, Some(b"x".to_vec())]));
    change::rename(&place.path("f"), &place.path("g")).unwrap();
    place.sync_directory();
    assert_eq!(place.outcomes("f"), BTreeSet::from([None]));
    assert_eq!(place.outcomes("g"), BTreeSet::from([Some(b"x".to_vec())]));
    change::unlink(&place.path("g")).unwrap();
    assert_eq!(place.outcomes("g").len(), 2);
}

#[test]
fn after_a_failed_sync_a_success_proves_nothing() {
    let place = place();
    let file = change::create_new(&place.path("f")).unwrap();
    place.sync_directory();
    change::write_at(&file, &filled(1, 1), 0).unwrap();
    place.recorder.fail(Fault { kind: CallKind::Sync, after: 0, short: 0, error: 5 });
    assert!(change::sync_data(&file).is_err());
    change::sync_data(&file).unwrap();
    let outcomes = place.outcomes("f");
    assert_eq!(outcomes, BTreeSet::from([Some(filled(0, 1)), Some(filled(1, 1))]));
    // Written again and synced, it is there.
    change::write_at(&file, &filled(1, 1), 0).unwrap();
    change::sync_data(&file).unwrap();
    assert_eq!(place.outcomes("f"), BTreeSet::from([Some(filled(1, 1))]));
    assert_eq!(place.recorder.clear_faults(), 1);
}

#[test]
fn a_sync_covers_nothing_that_came_after_it_began() {
    struct Late(std::fs::File);
    impl crate::recording::Observer for Late {
        fn change(&self) {}
        fn sync(&self) {
            change::write_at(&self.0, b"late", 0).unwrap();
        }
    }
    let place = place();
    let file = change::create_new(&place.path("f")).unwrap();
    place.sync_directory();
    place.recorder.observe(Some(std::sync::Arc::new(Late(file.try_clone().unwrap()))));
    change::sync_file_system(&std::fs::File::open(place.path("")).unwrap()).unwrap();
    place.recorder.observe(None);
    assert!(place.outcomes("f").contains(&Some(Vec::new())));
}

#[test]
fn an_image_is_written_as_it_was_drawn_and_a_kill_loses_nothing() {
    let place = place();
    files::make_directories(&place.path("a/b")).unwrap();
    let file = change::create_new(&place.path("a/b/f")).unwrap();
    change::write_at(&file, b"content", 0).unwrap();
    let journal = place.recorder.journal();
    let mut images = Images::new(&journal);
    images.advance(journal.events.len());
    let to = tempfile::tempdir().unwrap();
    images.kill().write(&journal, to.path()).unwrap();
    assert_eq!(std::fs::read(to.path().join("a/b/f")).unwrap(), b"content");
    let lost = (0..50).filter(|seed| images.power_cut(*seed).lost.any()).count();
    assert!(lost > 10, "{lost}");
}

/// Two recorders hear of their own directories only.
#[test]
fn recorders_do_not_hear_each_other() {
    let (one, other) = (place(), place());
    change::create_new(&one.path("f")).unwrap();
    assert_eq!((one.recorder.position(), other.recorder.position()), (1, 0));
    one.recorder.freeze(true);
    assert!(change::create_new(&one.path("g")).is_err());
    change::create_new(&other.path("g")).unwrap();
    assert!(!one.path("g").exists());
}

/// The inode of a file that is gone may be that of a file of somebody else.
#[test]
fn what_does_not_lie_below_the_root_is_not_recorded() {
    let place = place();
    let path = place.path("f");
    let file = change::create_new(&path).unwrap();
    change::write_at(&file, b"x", 0).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    std::fs::rename(&path, elsewhere.path().join("f")).unwrap();
    let before = place.recorder.position();
    change::write_at(&file, b"y", 1).unwrap();
    assert_eq!(place.recorder.position(), before);
    // One that was taken away and is still open is.
    let file = change::create_new(&place.path("g")).unwrap();
    change::unlink(&place.path("g")).unwrap();
    let before = place.recorder.position();
    change::write_at(&file, b"z", 0).unwrap();
    change::sync_data(&file).unwrap();
    assert_eq!(place.recorder.position(), before + 3);
}
