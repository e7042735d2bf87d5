//! File systems of a test's own: an ext4 image on a loop device, which can lose its power, and a tmpfs.
//! Unmounted when dropped; root only.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
};

use crate::workspace_root;

/// A mounted file system.
#[derive(Debug)]
pub struct Mount {
    image: Option<PathBuf>,
    point: PathBuf,
    mounted: bool,
}

impl Mount {
    /// A new ext4 of so many MiB, as an image beside its mount point in `home`.
    pub fn ext4(home: &Path, mebibytes: u64) -> Self {
        let image = home.join("image.ext4");
        let file = File::create(&image).expect("a file can be made in the folder of a test");
        file.set_len(mebibytes << 20).expect("a sparse file takes no space");
        // No lazy initialisation: its writes would run beside the test.
        tool(
            Command::new("mkfs.ext4")
                .args(["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"])
                .arg(&image),
        );
        let mut mount = Self { image: Some(image), point: home.join("mount"), mounted: false };
        fs::create_dir_all(&mount.point).expect("a folder can be made in the folder of a test");
        mount.mount();
        mount
    }

    /// A new tmpfs of so many MiB.
    pub fn tmpfs(home: &Path, mebibytes: u64) -> Self {
        let point = home.join("mount");
        fs::create_dir_all(&point).expect("a folder can be made in the folder of a test");
        tool(
            Command::new("mount")
                .args(["-t", "tmpfs", "-o", &format!("size={mebibytes}m"), "tmpfs"])
                .arg(&point),
        );
        Self { image: None, point, mounted: true }
    }

    /// Where it is mounted.
    pub fn point(&self) -> &Path {
        &self.point
    }

    /// A hand at the power switch of this file system.
    pub fn switch(&self) -> Switch {
        let script = workspace_root().join("tests/power_cut/cut.py");
        let mut command = Command::new("python3");
        command.arg(script).arg(&self.point).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("python3 is there");
        let answers = BufReader::new(child.stdout.take().expect("it is piped"));
        let mut switch = Switch { child, answers };
        switch.expect("ready");
        switch
    }

    /// Takes it away; the processes that used it must have ended.
    pub fn unmount(&mut self) {
        tool(Command::new("umount").arg(&self.point));
        self.mounted = false;
    }

    /// The file system gives up, as after an error of its disk: it becomes read-only, also for what is open.
    pub fn abort(&self) {
        tool(Command::new("mount").args(["-o", "remount,abort"]).arg(&self.point));
    }

    /// Mounts the image again, which replays its journal.
    pub fn mount(&mut self) {
        let image = self.image.as_ref().expect("only an image can be mounted again");
        tool(Command::new("mount").args(["-t", "ext4", "-o", "loop"]).arg(image).arg(&self.point));
        self.mounted = true;
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.mounted {
            // Lazily: a failing test must not leave a mount behind because something still runs.
            let unmounted = Command::new("umount").arg("--lazy").arg(&self.point).status();
            println!("unmounted {}: {unmounted:?}", self.point.display());
        }
    }
}

/// Cuts the power of a file system, without delay.
#[derive(Debug)]
pub struct Switch {
    child: Child,
    answers: BufReader<ChildStdout>,
}

impl Switch {
    /// As a power cut does: from now on nothing reaches the image, not even the journal. The kernel keeps the
    /// file system until it is unmounted; every write to it fails.
    pub fn cut(mut self) {
        let input = self.child.stdin.as_mut().expect("it is piped");
        input.write_all(b"\n").expect("the switch waits for this");
        self.expect("cut");
        self.child.wait().expect("it ends by itself");
    }

    fn expect(&mut self, word: &str) {
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("the switch speaks text");
        assert_eq!(line.trim(), word, "the switch failed");
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn tool(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
