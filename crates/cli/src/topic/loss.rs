//! `rimstone topic accept-loss`: shows what of a partition is damaged, and gives it up when it is named exactly.

use clap::Args;
use rimstone_client::{AcceptedLoss, Admin, DamagedRange, FoundDamage, reason};
use rimstone_types::{Offset, PartitionIndex};
use serde_json::{Value, json};

use crate::{
    exit::{Failure, Outcome},
    output::{self, count, line, table},
};

/// Shows what of a partition is damaged; gives it up for ever when it is named exactly.
#[derive(Debug, Args)]
pub(crate) struct AcceptLoss {
    /// Its topic
    topic: String,
    /// The partition
    #[arg(short, long, value_name = "N")]
    partition: u32,
    /// Offsets to give up, the second not included, as they are shown without this option: from where a damaged range
    /// begins to where one of the same segment ends; what is sound between them stays. May be repeated
    #[arg(long = "range", value_name = "FROM..UNTIL", value_parser = range)]
    ranges: Vec<(Offset, Offset)>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

impl AcceptLoss {
    pub(crate) async fn run(self, admin: &Admin) -> Outcome {
        let partition = PartitionIndex(self.partition);
        if self.ranges.is_empty() {
            return self.show(&admin.find_damage(&self.topic, partition).await?);
        }
        let accepted = admin.accept_loss(&self.topic, partition, &self.ranges).await;
        let accepted = accepted.map_err(|error| {
            let differs = error.is(reason::DAMAGE_DIFFERS);
            let failure = Failure::from(error);
            match differs {
                true => failure.hint(format!(
                    "see what is damaged now with: rimstone topic accept-loss {} --partition {partition}",
                    self.topic
                )),
                false => failure,
            }
        })?;
        if self.json {
            return Ok(output::json(
                &json!({ "accepted": accepted.iter().map(loss_json).collect::<Vec<_>>() }),
            )?);
        }
        self.tell(&accepted)
    }

    fn show(&self, found: &FoundDamage) -> Outcome {
        let FoundDamage { damaged, damaged_ranges, accepted_losses, accepted_loss_count } = found;
        if self.json {
            return Ok(output::json(&json!({
                "damaged": damaged.iter().map(range_json).collect::<Vec<_>>(),
                "damaged_ranges": damaged_ranges,
                "accepted": accepted_losses.iter().map(loss_json).collect::<Vec<_>>(),
                "accepted_count": accepted_loss_count,
            }))?);
        }
        for loss in accepted_losses {
            line(format!("given up before: {}, kept in {} ({})", lost(loss), loss.kept_in, loss.kept_bytes))?;
        }
        let more = accepted_loss_count.saturating_sub(accepted_losses.len() as u64);
        if more > 0 {
            line(format!("given up before: {more} more"))?;
        }
        if damaged.is_empty() {
            return Ok(line(format!("partition {} of {}: no damage is known", self.partition, self.topic))?);
        }
        let rows: Vec<_> = damaged
            .iter()
            .map(|range| {
                let offsets = match range.ranges {
                    0 | 1 => range.offsets.to_string(),
                    ranges => format!("{} in {ranges} ranges", range.offsets),
                };
                [format!("{}..{}", range.from, range.until), offsets, range.reason.clone()]
            })
            .collect();
        table(["DAMAGED", "OFFSETS", "FOUND"], &rows)?;
        let listed: u64 = damaged.iter().map(|range| range.ranges).sum();
        if *damaged_ranges > listed {
            let more = count(damaged_ranges - listed, "more damaged range");
            line(format!("\nThere are {more}; they are shown once these are given up."))?;
        }
        if damaged.iter().any(|range| range.ranges > 1) {
            line("\nWhere a line stands for several ranges, what is sound between them stays.")?;
        }
        let ranges: String =
            damaged.iter().map(|range| format!(" --range {}..{}", range.from, range.until)).collect();
        line(
            "\nNothing was changed. A copy of the files, put back while the server is stopped, brings the records back.",
        )?;
        line("To give these offsets up for ever, so that readers go over them:\n")?;
        Ok(line(format!(
            "    rimstone topic accept-loss {} --partition {}{ranges}",
            self.topic, self.partition
        ))?)
    }

    fn tell(&self, accepted: &[AcceptedLoss]) -> Outcome {
        for loss in accepted {
            line(format!(
                "gave up {} from {} on; the damaged bytes are kept in {} ({})",
                count(loss.offsets, "offset"),
                loss.from,
                loss.kept_in,
                loss.kept_bytes
            ))?;
        }
        Ok(())
    }
}

/// Offsets that are gone, in words.
pub(crate) fn lost(loss: &AcceptedLoss) -> String {
    let (from, until) = (loss.from, loss.until);
    match until.since(from) {
        all if all == loss.offsets => format!("offsets {from}..{until}"),
        _ => format!("{} among {from}..{until}", count(loss.offsets, "offset")),
    }
}

pub(crate) fn range_json(range: &DamagedRange) -> Value {
    json!({ "from": range.from.get(), "until": range.until.get(), "ranges": range.ranges, "offsets": range.offsets, "reason": range.reason })
}

pub(crate) fn loss_json(loss: &AcceptedLoss) -> Value {
    json!({
        "from": loss.from.get(),
        "until": loss.until.get(),
        "offsets": loss.offsets,
        "kept_in": loss.kept_in,
        "kept_bytes": loss.kept_bytes.get(),
    })
}

/// For clap: `from..until`.
fn range(text: &str) -> Result<(Offset, Offset), String> {
    let wrong = || format!("{text:?} is not FROM..UNTIL, for example 120..180");
    let (from, until) = text.split_once("..").ok_or_else(wrong)?;
    let offset = |text: &str| {
        let number = text.parse().map_err(|_| wrong())?;
        Offset::new(number).map_err(|error| error.to_string())
    };
    let (from, until) = (offset(from)?, offset(until)?);
    if from < until { Ok((from, until)) } else { Err(format!("{text:?}: UNTIL must be greater than FROM")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_two_offsets() {
        let offset = |value| Offset::new(value).unwrap();
        assert_eq!(range("120..180"), Ok((offset(120), offset(180))));
        for wrong in ["", "1", "1..", "..2", "1...2", "a..2", "1..-2", "1..99999999999999999999"] {
            assert!(range(wrong).unwrap_err().contains("FROM..UNTIL"), "{wrong}");
        }
        assert!(range("6..6").is_err() && range("6..5").is_err());
    }
}
