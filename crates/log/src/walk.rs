//! Walking over the frames of one segment, wherever its bytes come from.
//!
//! Not here: what an invalid frame means; the caller decides by where it lies.

use bytes::Bytes;

use crate::{
    error::LogReadError,
    frame::{FRAME_HEADER_LENGTH, FRAME_PROBE_LENGTH, Frame, FrameError, find_magic},
};

/// How much is looked at in one piece while a next frame is searched behind damage.
const RESYNC_WINDOW: usize = 1 << 20;
/// The first such piece: each is twice the one before.
const RESYNC_WINDOW_MIN: usize = 64 << 10;

/// Frames of this size are cheaper to step over, each with a system call, than to load.
const HOP_SIZE: u64 = 8 << 10;

/// Where the bytes of a segment come from.
pub(crate) trait Source {
    /// The bytes from `at` on: `length` of them, fewer only at the end of the file.
    fn load(&self, at: u64, length: usize) -> Result<Bytes, LogReadError>;
}

impl<S: Source + ?Sized> Source for &S {
    fn load(&self, at: u64, length: usize) -> Result<Bytes, LogReadError> {
        (**self).load(at, length)
    }
}

/// One step of a walk.
#[derive(Debug)]
pub(crate) enum Step {
    /// A frame whose check is right, and where it lies.
    Frame(u64, Frame),
    /// No valid frame lies here. The walk stays where it is.
    Invalid(u64, FrameError),
    /// The end.
    End,
}

/// A walk over frames.
#[derive(Debug)]
pub(crate) struct Walker<S> {
    source: S,
    salt: u32,
    end: u64,
    position: u64,
    window_at: u64,
    window: Bytes,
    window_size: usize,
    /// Payloads are not asked for: behind a frame of at least this size, only the next one's header is loaded.
    hop: Option<u64>,
    last_size: u64,
}

impl<S: Source> Walker<S> {
    /// A walk from a frame's position up to `end`, loading about `window_size` bytes at a time.
    pub(crate) fn new(source: S, salt: u32, position: u64, end: u64, window_size: usize) -> Self {
        let window_size = window_size.max(FRAME_PROBE_LENGTH);
        Self {
            source,
            salt,
            end,
            position,
            window_at: position,
            window: Bytes::new(),
            window_size,
            hop: None,
            last_size: 0,
        }
    }

    /// The same walk for who wants frames and not what is in them: large ones are not loaded.
    pub(crate) fn over_headers(self) -> Self {
        Self { hop: Some(HOP_SIZE), last_size: HOP_SIZE, ..self }
    }

    /// Where the next step looks.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// The next frame.
    pub(crate) fn step(&mut self) -> Result<Step, LogReadError> {
        let at = self.position;
        if at >= self.end {
            return Ok(Step::End);
        }
        let probe_length = usize::try_from(self.end - at).unwrap_or(usize::MAX).min(FRAME_PROBE_LENGTH);
        let probe = self.slice(at, probe_length)?;
        match Frame::decode(&probe, self.salt, at) {
            Ok(frame) if frame.size() > self.end - at => {
                let (have, need) = (self.end - at, frame.size());
                Ok(Step::Invalid(at, FrameError::Short { have: have as usize, need: need as usize }))
            }
            Ok(frame) => {
                self.position = at + frame.size();
                self.last_size = frame.size();
                Ok(Step::Frame(at, frame))
            }
            Err(error) => Ok(Step::Invalid(at, error)),
        }
    }

    /// The payload of a frame of this walk.
    pub(crate) fn payload(&mut self, at: u64, frame: &Frame) -> Result<Bytes, LogReadError> {
        self.slice(at + FRAME_HEADER_LENGTH as u64, frame.length as usize)
    }

    /// Moves on to the next valid frame behind an invalid one. `false`: there is none up to the end.
    pub(crate) fn resync(&mut self) -> Result<bool, LogReadError> {
        let mut at = self.position + 1;
        // Little at first: where damage is scattered, the next frame is near.
        let mut most = RESYNC_WINDOW_MIN;
        while at + FRAME_HEADER_LENGTH as u64 <= self.end {
            let length = usize::try_from(self.end - at).unwrap_or(usize::MAX).min(most);
            most = most.saturating_mul(2).min(RESYNC_WINDOW);
            let window = self.source.load(at, length)?;
            if window.len() < FRAME_HEADER_LENGTH {
                break;
            }
            let mut from = 0;
            while let Some(found) = find_magic(&window, from, self.salt) {
                let candidate = at + found as u64;
                let probe_length = usize::try_from(self.end - candidate).unwrap_or(usize::MAX);
                let probe = self.source.load(candidate, probe_length.min(FRAME_PROBE_LENGTH))?;
                if let Ok(frame) = Frame::decode(&probe, self.salt, candidate)
                    && frame.size() <= self.end - candidate
                {
                    self.position = candidate;
                    return Ok(true);
                }
                from = found + 1;
            }
            // The magic may lie across two windows.
            at += (window.len() - 3) as u64;
        }
        Ok(false)
    }

    fn slice(&mut self, at: u64, length: usize) -> Result<Bytes, LogReadError> {
        let inside = at.checked_sub(self.window_at).map_or(usize::MAX, |skip| skip as usize);
        if inside.checked_add(length).is_none_or(|end| end > self.window.len()) {
            let rest = usize::try_from(self.end.saturating_sub(at)).unwrap_or(usize::MAX);
            let hops = self.hop.is_some_and(|size| self.last_size >= size);
            let ahead = if hops { length } else { self.window_size.max(length) };
            self.window = self.source.load(at, ahead.min(rest))?;
            self.window_at = at;
            return Ok(self.window.slice(..length.min(self.window.len())));
        }
        Ok(self.window.slice(inside..inside + length))
    }
}

#[cfg(test)]
mod tests {
    use rimstone_types::Offset;

    use super::*;
    use crate::frame::{FrameWriter, LogPosition, Totals};

    struct Memory(Bytes);

    impl Source for Memory {
        fn load(&self, at: u64, length: usize) -> Result<Bytes, LogReadError> {
            let at = at as usize;
            Ok(self.0.slice(at..(at + length).min(self.0.len())))
        }
    }

    /// The search grows as it goes: no frame is missed where two of its pieces meet.
    #[test]
    fn the_next_frame_is_found_wherever_damage_ends() {
        const SALT: u32 = 7;
        // Where the first three pieces end, each with an overlap of three bytes.
        let (mut end, mut size, mut ends) = (1, RESYNC_WINDOW_MIN, Vec::new());
        for _ in 0..3 {
            end += size - 3;
            size *= 2;
            ends.push(end);
        }
        for end in ends {
            for position in end - 10..end + 10 {
                let mut frames = FrameWriter { salt: SALT, position: position as u64, previous_check: 0 };
                let seal = frames.seal(&Totals::empty(Offset::ZERO), LogPosition::default());
                let bytes = [&vec![0; position][..], &seal].concat();
                let length = bytes.len() as u64;
                let mut walker = Walker::new(Memory(bytes.into()), SALT, 0, length, 256);
                assert!(matches!(walker.step().unwrap(), Step::Invalid(0, _)));
                assert!(walker.resync().unwrap(), "at {position}");
                assert_eq!(walker.position(), position as u64);
                assert!(matches!(walker.step().unwrap(), Step::Frame(at, _) if at == position as u64));
            }
        }
    }
}
