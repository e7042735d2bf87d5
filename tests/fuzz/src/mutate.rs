//! Mutations of bytes that know nothing of what they mean.

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

/// Values that lengths, counts and offsets go wrong with.
const INTERESTING: [u64; 16] = [
    0,
    1,
    2,
    7,
    63,
    64,
    127,
    128,
    255,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    i64::MAX as u64,
    u64::MAX,
];

/// Randomness from a seed.
#[derive(Debug)]
pub struct Random(StdRng, u64);

impl Random {
    /// The same for the same seed.
    pub fn new(seed: u64) -> Self {
        Self(StdRng::seed_from_u64(seed), seed)
    }

    /// Where it came from.
    pub fn seed(&self) -> u64 {
        self.1
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        self.0.random_range(0..end)
    }

    /// True once in so many times.
    pub fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    /// One of them.
    pub fn one_of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }

    /// Any number, often one at a bound.
    pub fn number(&mut self) -> u64 {
        match self.below(3) {
            0 => self.0.random_range(0..=u64::MAX),
            1 => *self.one_of(&INTERESTING),
            _ => self.0.random_range(0..1 << 12),
        }
    }

    /// Changes bytes in one to a few places.
    pub fn mutate(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..[1, 1, 1, 2, 3, 8][self.below(6)] {
            self.mutate_once(bytes);
        }
    }

    fn mutate_once(&mut self, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            bytes.push(self.number() as u8);
            return;
        }
        let at = self.below(bytes.len());
        let run = (1 + self.below(32)).min(bytes.len() - at);
        match self.below(9) {
            0 | 1 => bytes[at] ^= 1 << self.below(8),
            2 => bytes[at] = self.number() as u8,
            3 | 4 => {
                let width = *self.one_of(&[2, 4, 8]);
                let value = self.number().to_be_bytes();
                for (byte, new) in bytes[at..].iter_mut().zip(&value[8 - width..]) {
                    *byte = *new;
                }
            }
            5 => drop(bytes.drain(at..at + run)),
            6 => {
                let copy = bytes[at..at + run].to_vec();
                let to = self.below(bytes.len());
                bytes.splice(to..to, copy);
            }
            7 => bytes[at..at + run].fill(*self.one_of(&[0, 0xff, 0x80])),
            _ => bytes.truncate(at),
        }
    }

    /// Cuts bytes into pieces of random lengths.
    pub fn cut<'a>(&mut self, mut bytes: &'a [u8]) -> Vec<&'a [u8]> {
        let mut pieces = Vec::new();
        while !bytes.is_empty() {
            let most = *self.one_of(&[1, 3, 16, 4096]);
            let (piece, rest) = bytes.split_at((1 + self.below(most)).min(bytes.len()));
            pieces.push(piece);
            bytes = rest;
        }
        pieces
    }
}
