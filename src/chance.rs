//! Chance from a number: every random value of the tool is a function of a seed, a name, a row and an index.
//!
//! ```text
//! key = mix(mix(seed + G) + fnv1a(name))
//! key = mix(key + G (row + 1))
//! value i = mix(key + G (i + 1))         SplitMix64 begun at `key`
//! ```
//!
//! with `G` SplitMix64's increment and `mix` its output function. Invariant: the same bits on every machine and device
//! (logarithm, sine and cosine are libm's own), and a row of a batch does not know how many others there are.

/// SplitMix64's increment and multipliers (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
const INCREMENT: u64 = 0x9E37_79B9_7F4A_7C15;
const MULTIPLY: [u64; 2] = [0xBF58_476D_1CE4_E5B9, 0x94D0_49BB_1331_11EB];
/// FNV-1a, 64 bits.
const FNV_BASIS: u64 = 0xCBF2_9CE4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01B3;

/// The random values of one name and row, in order.
#[derive(Debug, Clone)]
pub struct Stream {
    state: u64,
}

impl Stream {
    /// From the beginning.
    pub fn new(seed: u64, name: &str, row: usize) -> Self {
        let hash = name.bytes().fold(FNV_BASIS, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(FNV_PRIME));
        let key = mix(mix(seed.wrapping_add(INCREMENT)).wrapping_add(hash));
        Stream { state: mix(key.wrapping_add(INCREMENT.wrapping_mul(row as u64 + 1))) }
    }

    /// 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(INCREMENT);
        mix(self.state)
    }

    /// In [0, 1), 53 bits.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 * (-53f64).exp2()
    }

    /// Below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(n)) >> 64) as u64
    }

    /// Normal values: mean 0, deviation 1, by Box and Muller in f64, each rounded once.
    pub fn normals(&mut self, count: usize) -> Vec<f32> {
        let mut values = Vec::with_capacity(count + 1);
        while values.len() < count {
            let radius = (-2.0 * libm::log(1.0 - self.unit())).sqrt();
            let angle = std::f64::consts::TAU * self.unit();
            values.extend([(radius * libm::cos(angle)) as f32, (radius * libm::sin(angle)) as f32]);
        }
        values.truncate(count);
        values
    }
}

fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(MULTIPLY[0]);
    let x = (x ^ (x >> 27)).wrapping_mul(MULTIPLY[1]);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generator_is_splitmix64() {
        // The published test vector of seed 1234567.
        let mut stream = Stream { state: 1_234_567 };
        let values: Vec<u64> = (0..3).map(|_| stream.bits()).collect();
        assert_eq!(values, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn normals_are_normal_and_always_the_same() {
        let values = Stream::new(0, "noise", 0).normals(100_001);
        let moment = |k: i32| values.iter().map(|x| f64::from(*x).powi(k)).sum::<f64>() / values.len() as f64;
        assert!(moment(1).abs() < 0.01 && (moment(2) - 1.0).abs() < 0.02, "{} {}", moment(1), moment(2));
        assert!(moment(3).abs() < 0.05 && (moment(4) - 3.0).abs() < 0.1, "{} {}", moment(3), moment(4));
        assert_eq!(
            values[..4],
            Stream::new(0, "noise", 0).normals(3)[..].iter().copied().chain([values[3]]).collect::<Vec<_>>()[..]
        );
    }

    #[test]
    fn names_rows_and_seeds_part_the_streams() {
        let first = |seed, name, row| Stream::new(seed, name, row).bits();
        let all = [first(0, "noise", 0), first(0, "noise", 1), first(1, "noise", 0), first(0, "state", 0)];
        assert!((0..4).all(|a| (0..a).all(|b| all[a] != all[b])), "{all:?}");
        let mut dice = Stream::new(0, "dice", 0);
        let mut seen = [0; 6];
        (0..6000).for_each(|_| seen[dice.below(6) as usize] += 1);
        assert!(seen.iter().all(|n| (850..1150).contains(n)), "{seen:?}");
    }
}
