//! The shape of Azure's load of 2019 (Shahrad et al.): 1 % of the actions get 86 % of the calls, 82 % are called less than
//! once a minute; calls come in bursts; most runs are short and some long. Who plays it says how many actions there are
//! and how fast it goes.

/// Shares of actions and of calls: the few, those between, the many.
const FEW: (f64, f64) = (0.01, 0.86);
const BETWEEN: (f64, f64) = (0.17, 0.13);
/// Coefficients of variation of the time between calls, each with the share of actions up to it.
const BURSTS: [(f64, f64); 4] = [(0.5, 0.5), (0.85, 2.0), (0.99, 5.0), (1.0, 33.0)];
const LONGEST_RUN_S: f64 = 30.0;

/// What a shape's numbers are drawn from.
pub(crate) trait Draw {
    /// Above 0, at most 1.
    fn unit(&mut self) -> f64;

    /// With mean 1.
    fn exponential(&mut self) -> f64 {
        -self.unit().ln()
    }

    fn log_normal(&mut self, median: f64, sigma: f64) -> f64 {
        let normal = (-2.0 * self.unit().ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos();
        median * (sigma * normal).exp()
    }
}

/// How one action is called, and what it needs.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    /// Of all calls.
    pub(crate) share: f64,
    variation: f64,
    pub(crate) memory_mb: f64,
    /// Of its runs, in seconds, and how much they differ.
    pub(crate) median_s: f64,
    sigma: f64,
}

impl Shape {
    /// Of `count` actions the one that is called most if `rank` is 0.
    pub(crate) fn draw(rank: usize, count: usize, random: &mut impl Draw) -> Self {
        let few = (count as f64 * FEW.0).ceil() as usize;
        let between = (count as f64 * BETWEEN.0).ceil() as usize;
        let share = match rank {
            r if r < few => FEW.1 / (r + 1) as f64 / harmonic(few),
            r if r < few + between => BETWEEN.1 / between as f64,
            _ => (1.0 - FEW.1 - BETWEEN.1) / (count - few - between) as f64,
        };
        let (median, between_actions, sigma) = if rank < few { (0.38, 0.6, 0.8) } else { (0.67, 2.2, 0.5) };
        let burst = random.unit();
        Self {
            share,
            variation: BURSTS.iter().find(|(upto, _)| burst <= *upto).map_or(0.5, |(_, v)| *v),
            memory_mb: random.log_normal(140.0, 0.457),
            median_s: random.log_normal(median, between_actions).clamp(0.001, LONGEST_RUN_S),
            sigma,
        }
    }

    /// Of its runs.
    pub(crate) fn mean_s(&self) -> f64 {
        (self.median_s * (self.sigma * self.sigma / 2.0).exp()).min(LONGEST_RUN_S)
    }

    pub(crate) fn run_s(&self, random: &mut impl Draw) -> f64 {
        random.log_normal(self.median_s, self.sigma).min(LONGEST_RUN_S)
    }

    /// Until its next call, as a part of the mean.
    pub(crate) fn gap(&self, random: &mut impl Draw) -> f64 {
        let square = self.variation * self.variation;
        if self.variation < 1.0 {
            let stages = (1.0 / square).round().max(1.0) as u32;
            (0..stages).map(|_| random.exponential()).sum::<f64>() / f64::from(stages)
        } else {
            let often = (1.0 + ((square - 1.0) / (square + 1.0)).sqrt()) / 2.0;
            let phase = if random.unit() <= often { often } else { 1.0 - often };
            random.exponential() / (2.0 * phase)
        }
    }
}

fn harmonic(n: usize) -> f64 {
    (1..=n).map(|k| 1.0 / k as f64).sum()
}
