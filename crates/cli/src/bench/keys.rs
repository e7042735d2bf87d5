//! Which keys records have: how many there are, and how often each comes.

use std::{fmt, str::FromStr};

use bytes::Bytes;
use serde::{Serialize, Serializer};

use super::payload::Random;

/// Keys of a Zipf distribution: a table of 8 bytes each is kept.
const ZIPF_KEYS_MAX: u32 = 1_000_000;
/// How uneven a Zipf distribution may be; at 5 almost every record has the first key.
const EXPONENTS: std::ops::RangeInclusive<f64> = 0.1..=5.0;
/// The exponent unless another is given: what is found in many real logs.
const EXPONENT_DEFAULT: f64 = 1.0;

/// A distribution as somebody typed it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum KeySpec {
    /// No keys.
    None,
    /// So many keys, each as often as the others.
    Uniform(u32),
    /// So many keys, the n-th 1/n^exponent as often as the first.
    Zipf(u32, f64),
    /// So many keys, one after another.
    Sequential(u32),
}

impl FromStr for KeySpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split(':').collect();
        let count = |most: u32| match parts.get(1).map(|count| count.parse::<u32>()) {
            Some(Ok(count)) if (1..=most).contains(&count) => Ok(count),
            _ => Err(format!("{text:?} needs a number of keys, 1 to {most}, for example {}:1000", parts[0])),
        };
        match (parts[0], parts.len()) {
            ("none", 1) => Ok(Self::None),
            ("uniform", 1..=2) => Ok(Self::Uniform(count(u32::MAX)?)),
            ("sequential", 1..=2) => Ok(Self::Sequential(count(u32::MAX)?)),
            ("zipf", 1..=2) => Ok(Self::Zipf(count(ZIPF_KEYS_MAX)?, EXPONENT_DEFAULT)),
            ("zipf", 3) => match parts[2].parse() {
                Ok(exponent) if EXPONENTS.contains(&exponent) => {
                    Ok(Self::Zipf(count(ZIPF_KEYS_MAX)?, exponent))
                }
                _ => Err(format!(
                    "{:?} is not an exponent; {} to {} is allowed",
                    parts[2],
                    EXPONENTS.start(),
                    EXPONENTS.end()
                )),
            },
            _ => Err(format!(
                "{text:?} is not a distribution of keys; write none, uniform:N, zipf:N, zipf:N:EXPONENT or sequential:N"
            )),
        }
    }
}

impl fmt::Display for KeySpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Uniform(keys) => write!(f, "uniform:{keys}"),
            Self::Zipf(keys, exponent) => write!(f, "zipf:{keys}:{exponent}"),
            Self::Sequential(keys) => write!(f, "sequential:{keys}"),
        }
    }
}

impl Serialize for KeySpec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Gives out keys.
#[derive(Debug, Clone)]
pub(crate) struct Keys {
    spec: KeySpec,
    /// Of a Zipf distribution: the probability of a key up to this one.
    cumulative: Vec<f64>,
    next: u32,
}

impl Keys {
    pub(crate) fn new(spec: KeySpec) -> Self {
        let cumulative = match spec {
            KeySpec::Zipf(keys, exponent) => cumulative(keys, exponent),
            _ => Vec::new(),
        };
        Self { spec, cumulative, next: 0 }
    }

    /// The number of the next key; `None` if records have none.
    fn number(&mut self, random: &mut Random) -> Option<u32> {
        Some(match self.spec {
            KeySpec::None => return None,
            KeySpec::Uniform(keys) => random.below(keys.into()) as u32,
            KeySpec::Zipf(keys, _) => {
                let at = random.unit();
                (self.cumulative.partition_point(|below| *below <= at) as u32).min(keys - 1)
            }
            KeySpec::Sequential(keys) => {
                let number = self.next;
                self.next = (number + 1) % keys;
                number
            }
        })
    }

    /// The next key.
    pub(crate) fn key(&mut self, random: &mut Random) -> Option<Bytes> {
        self.number(random).map(|number| Bytes::from(format!("key-{number:08}")))
    }
}

fn cumulative(keys: u32, exponent: f64) -> Vec<f64> {
    let mut sum = 0.0;
    let mut sums: Vec<f64> = (1..=keys)
        .map(|rank| {
            sum += f64::from(rank).powf(-exponent);
            sum
        })
        .collect();
    for below in &mut sums {
        *below /= sum;
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRAWS: usize = 200_000;

    fn counts(spec: &str, keys: usize) -> Vec<f64> {
        let mut drawn = vec![0u32; keys];
        let mut sampler = Keys::new(spec.parse().unwrap());
        let mut random = Random::new(42);
        for _ in 0..DRAWS {
            drawn[sampler.number(&mut random).unwrap() as usize] += 1;
        }
        drawn.iter().map(|count| f64::from(*count) / DRAWS as f64).collect()
    }

    #[test]
    fn uniform_keys_come_equally_often() {
        for share in counts("uniform:50", 50) {
            // 4000 of each are expected, with a standard deviation of 63.
            assert!((share - 0.02).abs() < 0.002, "{share}");
        }
    }

    #[test]
    fn zipf_keys_come_as_their_rank_says() {
        for (spec, exponent) in [("zipf:1000", 1.0), ("zipf:1000:0.5", 0.5), ("zipf:1000:2", 2.0)] {
            let shares = counts(spec, 1000);
            let all: f64 = (1..=1000).map(|rank| f64::from(rank).powf(-exponent)).sum();
            for rank in [1, 2, 3, 10, 30] {
                let expected = f64::from(rank).powf(-exponent) / all;
                let deviation = (expected * (1.0 - expected) / DRAWS as f64).sqrt();
                let share = shares[rank as usize - 1];
                assert!((share - expected).abs() < 5.0 * deviation, "{spec} {rank}: {share} {expected}");
            }
            assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-9);
        }
    }

    #[test]
    fn sequential_keys_come_one_after_another() {
        let mut keys = Keys::new(KeySpec::Sequential(3));
        let mut random = Random::new(1);
        let numbers: Vec<_> = (0..7).map(|_| keys.number(&mut random).unwrap()).collect();
        assert_eq!(numbers, [0, 1, 2, 0, 1, 2, 0]);
        assert_eq!(keys.key(&mut random).unwrap(), "key-00000001");
        assert_eq!(Keys::new(KeySpec::None).key(&mut random), None);
    }

    #[test]
    fn distributions_are_read_as_they_are_shown() {
        for text in ["none", "uniform:1000", "zipf:10:1.5", "sequential:7"] {
            assert_eq!(text.parse::<KeySpec>().unwrap().to_string(), text);
        }
        assert_eq!("zipf:10".parse(), Ok(KeySpec::Zipf(10, 1.0)));
        for bad in [
            "",
            "uniform",
            "uniform:0",
            "uniform:x",
            "zipf:2000000",
            "zipf:10:9",
            "none:3",
            "normal:3",
            "zipf:1:1:1",
        ] {
            let error = bad.parse::<KeySpec>().unwrap_err();
            assert!(
                error.contains(&format!("{:?}", bad.split(':').next().unwrap()))
                    || error.contains(bad)
                    || error.contains("exponent"),
                "{error}"
            );
        }
    }
}
