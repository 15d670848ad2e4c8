use super::take;
use crate::Failure;

/// The consumption behind the readings of a counter that begins again: an energy meter that restarts at zero, a rain gauge of 16 bits.
/// 17 bytes of state.
///
/// ```
/// use sedge_function::prelude::*;
/// use sedge_function::state::Meter;
///
/// # fn handle(message: Message) -> Outcome {
/// let pulses = message.require_number("pulses")?;
/// let used = Meter::wrapping(65_536.0).update("pulses", pulses)?;
/// let total = JsonObject::new().number("total", used.total).number("since_last", used.since_last);
/// # Ok(vec![Output::publish_json("derived/pulses", total)])
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Meter {
    width: Option<f64>,
    jitter: f64,
}

/// What a reading adds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Consumption {
    /// Since the reading before; 0 for the first one.
    pub since_last: f64,
    /// Since the first reading that the function got.
    pub total: f64,
    /// Whether the counter began again, by either way.
    pub restarted: bool,
}

const VERSION: u8 = 1;

impl Meter {
    /// A counter that restarts at zero, when the device does: a reading below the last is all consumption since then.
    pub fn restarting() -> Self {
        Self { width: None, jitter: 0.0 }
    }

    /// A counter of a known width that goes on at zero behind `width - 1`: 65,536 for 16 bits, 4,294,967,296 for 32. A fall that would
    /// be more than half of the width as an overflow is a restart at zero, since such a device is read more often than that.
    pub fn wrapping(width: f64) -> Self {
        Self { width: Some(width), jitter: 0.0 }
    }

    /// A fall by at most this counts as no consumption, for devices whose readings waver.
    pub fn jitter(self, jitter: f64) -> Self {
        Self { jitter, ..self }
    }

    /// The consumption after this reading. What is no reading, NaN and what is negative or infinite, adds nothing.
    pub fn update(&self, key: &str, reading: f64) -> Result<Consumption, Failure> {
        let stored = super::read(key)?.and_then(|bytes| decode(&bytes));
        let (last, total) = stored.unwrap_or((reading, 0.0));
        if !(reading >= 0.0 && reading.is_finite()) {
            return Ok(Consumption { total, ..Consumption::default() });
        }
        let wavers = reading < last && last - reading <= self.jitter;
        let restarted = reading < last && !wavers;
        let since_last = match self.width {
            _ if wavers => 0.0,
            _ if !restarted => reading - last,
            Some(width) if last < width && reading + width - last <= width / 2.0 => reading + width - last,
            _ => reading,
        };
        let total = total + since_last;
        let mut bytes = [VERSION; 17];
        bytes[1..9].copy_from_slice(&if wavers { last } else { reading }.to_le_bytes());
        bytes[9..].copy_from_slice(&total.to_le_bytes());
        super::write(key, &bytes)?;
        Ok(Consumption { since_last, total, restarted })
    }
}

/// The last reading and the total.
fn decode(mut bytes: &[u8]) -> Option<(f64, f64)> {
    let [VERSION] = take(&mut bytes)? else { return None };
    let last = f64::from_le_bytes(take(&mut bytes)?);
    let total = f64::from_le_bytes(take(&mut bytes)?);
    let is_reading = |value: f64| value.is_finite() && value >= 0.0;
    (bytes.is_empty() && is_reading(last) && is_reading(total)).then_some((last, total))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Board;
    use proptest::prelude::*;

    fn run<const N: usize>(meter: Meter, readings: [f64; N]) -> [Consumption; N] {
        Board::new().with_state(|| readings.map(|reading| meter.update("k", reading).unwrap()))
    }

    #[test]
    fn a_meter_that_restarts_loses_nothing() {
        let got = run(Meter::restarting(), [100.0, 103.0, 103.0, 2.0, 5.0]);
        assert_eq!(got.map(|used| used.since_last), [0.0, 3.0, 0.0, 2.0, 3.0]);
        assert_eq!(got[4], Consumption { since_last: 3.0, total: 8.0, restarted: false });
        assert_eq!(got.map(|used| used.restarted), [false, false, false, true, false]);
    }

    #[test]
    fn a_counter_of_16_bits_wraps_and_a_device_that_restarts_does_not() {
        let meter = Meter::wrapping(65_536.0);
        assert_eq!(run(meter, [65_530.0, 4.0])[1], Consumption { since_last: 10.0, total: 10.0, restarted: true });
        assert_eq!(run(meter, [20_000.0, 4.0])[1], Consumption { since_last: 4.0, total: 4.0, restarted: true });
        // Not of this width.
        assert_eq!(run(meter, [70_000.0, 4.0])[1].since_last, 4.0);
    }

    #[test]
    fn readings_that_waver_are_no_restart() {
        let got = run(Meter::restarting().jitter(0.2), [100.0, 99.9, 100.1, 99.8]);
        assert_eq!(got.map(|used| used.restarted), [false, false, false, true]);
        assert_eq!((got[1].since_last, (got[2].total * 10.0).round()), (0.0, 1.0));
    }

    #[test]
    fn what_is_no_reading_adds_nothing() {
        let got = run(Meter::restarting(), [f64::NAN, 100.0, -1.0, f64::INFINITY, 101.0]);
        assert_eq!(got.map(|used| used.total), [0.0, 0.0, 0.0, 0.0, 1.0]);
    }

    proptest! {
        #[test]
        fn the_total_of_a_counter_that_wraps_is_the_true_one(
            start in 0..65_536u32,
            steps in prop::collection::vec(0..32_768u32, 0..100),
        ) {
            let mut board = Board::new();
            let mut read = |count: u32| {
                board.with_state(|| Meter::wrapping(65_536.0).update("k", f64::from(count % 65_536))).unwrap().total
            };
            read(start);
            let mut count = start;
            for step in steps {
                count += step;
                prop_assert_eq!(read(count), f64::from(count - start));
            }
        }

        #[test]
        fn the_total_of_one_that_restarts_never_falls(readings in prop::collection::vec(0.0..1e9f64, 0..100)) {
            let mut board = Board::new();
            let mut before = 0.0;
            for reading in readings {
                let used = board.with_state(|| Meter::restarting().update("k", reading)).unwrap();
                prop_assert!(used.since_last >= 0.0 && used.since_last <= reading.max(1e9) && used.total >= before);
                before = used.total;
            }
        }
    }
}
