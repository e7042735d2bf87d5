//! The one sync: how appends become durable on this device, and why so.
//!
//! `syncfs` makes every partition durable in one call, and is used only where its promise was proven: Linux 5.17
//! and later (earlier kernels lose write-back errors), on file systems of the allow-list. Elsewhere each file
//! is synced by itself, and each directory in which a name appeared. See ADR 0001.

use std::{
    fs::File,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::Path,
    sync::Arc,
};

use parking_lot::{Condvar, Mutex};
use rimstone_log::files;
use rustix::fs::StatVfsMountFlags;

use crate::storage::SyncMethod;

/// The first kernel whose `syncfs` reports every write-back error, in (major, minor).
const SYNCFS_KERNEL_MIN: (u32, u32) = (5, 17);
/// File systems on which a fault test has proven `syncfs`: type as the mount table names it, and the magic
/// number that `statfs` must agree with.
const SYNCFS_FILE_SYSTEMS: [(&str, i64); 1] = [("ext4", 0xEF53)];

/// Which way appends become durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SyncPreference {
    /// `syncfs` where it is proven, `fdatasync` elsewhere.
    #[default]
    Auto,
    /// `fdatasync` for each file, everywhere.
    Fdatasync,
    /// `syncfs`, proven or not: for a recorder, which knows what it would cover.
    #[cfg(any(test, feature = "recording"))]
    Syncfs,
}

/// What a group has dirtied.
#[derive(Debug, Default)]
pub(crate) struct Dirty {
    pub(crate) files: Vec<Arc<File>>,
    /// Open, for the topic may be deleted before the sync: that is no failure of the device.
    pub(crate) directories: Vec<File>,
}

/// What is known of the syncs of groups, for those who write and sync files of their own beside them: a sync of everything
/// that fails takes what others had written with it, and their own sync answers that all is well.
#[derive(Debug, Default)]
pub(crate) struct Syncs {
    state: Mutex<SyncsState>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct SyncsState {
    running: bool,
    failed: u64,
}

impl Syncs {
    pub(crate) fn begin(&self) {
        self.state.lock().running = true;
    }

    pub(crate) fn end(&self, failed: bool) {
        let mut state = self.state.lock();
        state.running = false;
        state.failed += u64::from(failed);
        self.ended.notify_all();
    }

    /// How many have failed by now.
    pub(crate) fn failed(&self) -> u64 {
        self.state.lock().failed
    }

    /// Whether none has failed since there were so many failed ones; waits for the end of one that runs.
    pub(crate) fn none_failed_since(&self, failed: u64) -> bool {
        let mut state = self.state.lock();
        while state.running {
            #[cfg(any(test, feature = "recording"))]
            if crate::local::STEPPED.get() {
                // It runs further up on this thread.
                return false;
            }
            self.ended.wait(&mut state);
        }
        state.failed == failed
    }
}

/// Makes things durable on one device.
#[derive(Debug)]
pub(crate) struct Syncer {
    /// One private descriptor, opened before the first write, so that no error is reported to somebody else.
    descriptor: File,
    device: u64,
    all_at_once: bool,
    method: SyncMethod,
}

impl Syncer {
    /// Decides for the device that `path` lies on.
    pub(crate) fn detect(path: &Path, preference: SyncPreference) -> std::io::Result<Self> {
        let descriptor = File::open(path)?;
        let device = descriptor.metadata()?.dev();
        let verdict = match preference {
            SyncPreference::Fdatasync => Err("the settings ask for it".to_owned()),
            #[cfg(any(test, feature = "recording"))]
            SyncPreference::Syncfs => Ok("a recorder asks for it".to_owned()),
            SyncPreference::Auto => syncfs_is_proven(&descriptor, device),
        };
        let (all_at_once, method) = match verdict {
            Ok(reason) => (true, SyncMethod { name: "syncfs", reason }),
            Err(reason) => (false, SyncMethod { name: "fdatasync", reason }),
        };
        Ok(Self { descriptor, device, all_at_once, method })
    }

    pub(crate) fn method(&self) -> &SyncMethod {
        &self.method
    }

    /// Whether a directory lies on the device that is synced. A file system mounted below the data directory
    /// is not covered by `syncfs`.
    pub(crate) fn covers(&self, directory: &Path) -> std::io::Result<bool> {
        Ok(!self.all_at_once || std::fs::metadata(directory)?.dev() == self.device)
    }

    /// Whether a directory in which a name appears must be named too.
    pub(crate) fn wants_directories(&self) -> bool {
        !self.all_at_once
    }

    /// Makes durable everything that was written before the call. A failure is final: neither another call nor
    /// another method proves anything afterwards, so nobody may try again.
    pub(crate) fn sync(&self, dirty: &Dirty, witness: Option<&File>) -> Result<(), String> {
        if self.all_at_once {
            files::sync_file_system(&self.descriptor).map_err(|error| format!("syncfs: {error}"))?;
            return self.check_writable();
        }
        for file in &dirty.files {
            files::sync_data(file).map_err(|error| format!("fdatasync: {error}"))?;
        }
        for directory in &dirty.directories {
            files::sync_names(directory).map_err(|error| format!("fsync of a directory: {error}"))?;
        }
        if let Some(witness) = witness {
            files::sync_data(witness).map_err(|error| format!("fdatasync: {error}"))?;
        }
        self.check_writable()
    }

    /// A file system that went read-only has given up on what it had not written; its success counts for nothing.
    fn check_writable(&self) -> Result<(), String> {
        match rustix::fs::fstatvfs(self.descriptor.as_fd()) {
            Ok(state) if state.f_flag.contains(StatVfsMountFlags::RDONLY) => {
                Err("the file system is read-only after the sync".to_owned())
            }
            Ok(_) => Ok(()),
            Err(error) => Err(format!("statvfs after the sync: {error}")),
        }
    }
}

/// Why `syncfs` can be used, or why not.
fn syncfs_is_proven(descriptor: &File, device: u64) -> Result<String, String> {
    if !cfg!(target_os = "linux") {
        return Err("not Linux".to_owned());
    }
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let (major, minor) = SYNCFS_KERNEL_MIN;
    if kernel_version(&release).is_none_or(|version| version < SYNCFS_KERNEL_MIN) {
        return Err(format!(
            "syncfs reports every error only from Linux {major}.{minor} on; this is {release}"
        ));
    }
    let magic = rustix::fs::fstatfs(descriptor.as_fd()).map_err(|error| format!("statfs: {error}"))?.f_type;
    let table = std::fs::read_to_string("/proc/self/mountinfo")
        .map_err(|error| format!("the mount table: {error}"))?;
    let kind = proven_type(&table, device, magic as i64)?;
    Ok(format!("one sync for all partitions, proven on {kind}; Linux {release}"))
}

/// The type of the file system on a device, if it is on the list.
fn proven_type(table: &str, device: u64, magic: i64) -> Result<String, String> {
    let kind = mounted_type(table, device).ok_or("the mount table does not name the device")?;
    if SYNCFS_FILE_SYSTEMS.iter().any(|(name, number)| *name == kind && *number == magic) {
        Ok(kind)
    } else {
        Err(format!(
            "syncfs is not proven on {kind}; proven: {}",
            SYNCFS_FILE_SYSTEMS.map(|(name, _)| name).join(", ")
        ))
    }
}

fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// The type of the file system on a device, from a mount table in the form of `/proc/self/mountinfo`.
fn mounted_type(table: &str, device: u64) -> Option<String> {
    let wanted = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    table.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        (before.split(' ').nth(2)? == wanted).then(|| after.split(' ').next().map(str::to_owned))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_compared_by_number() {
        assert_eq!(kernel_version("6.18.44-fc"), Some((6, 18)));
        assert_eq!(kernel_version("5.4"), Some((5, 4)));
        assert!(kernel_version("5.16.0").unwrap() < SYNCFS_KERNEL_MIN);
        assert_eq!(kernel_version("linux"), None);
    }

    #[test]
    fn the_mount_table_tells_the_type() {
        let table = "22 27 0:21 / /proc rw,relatime - proc proc rw\n\
                     30 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
                     31 30 0:40 / /mnt rw - overlay overlay rw,lowerdir=/a";
        let device = rustix::fs::makedev(254, 0);
        assert_eq!(mounted_type(table, device).as_deref(), Some("ext4"));
        assert_eq!(mounted_type(table, rustix::fs::makedev(0, 40)).as_deref(), Some("overlay"));
        assert_eq!(mounted_type(table, rustix::fs::makedev(9, 9)), None);
    }

    #[test]
    fn what_is_not_on_the_list_is_not_proven() {
        let table = "30 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
                     31 30 0:40 / /dev/shm rw - tmpfs tmpfs rw";
        let (disk, memory) = (rustix::fs::makedev(254, 0), rustix::fs::makedev(0, 40));
        assert_eq!(proven_type(table, disk, 0xEF53).as_deref(), Ok("ext4"));
        assert!(proven_type(table, disk, 0x0102_1994).unwrap_err().contains("not proven on ext4"));
        let reason = proven_type(table, memory, 0x0102_1994).unwrap_err();
        assert!(reason.contains("not proven on tmpfs; proven: ext4"), "{reason}");
        assert!(proven_type(table, rustix::fs::makedev(9, 9), 0xEF53).is_err());
    }

    #[test]
    fn memory_file_systems_are_synced_file_by_file() {
        let memory = Path::new("/dev/shm");
        if !memory.is_dir() {
            return;
        }
        let syncer = Syncer::detect(memory, SyncPreference::Auto).unwrap();
        assert_eq!(syncer.method().name, "fdatasync", "{}", syncer.method().reason);
    }
}
