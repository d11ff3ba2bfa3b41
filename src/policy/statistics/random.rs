//! Which frames are looked at when not all are: openpi's choice, and a cheap scatter for samples.
//!
//! Sources: PyTorch 2.7's CPU generator and `randperm` (aten/src/ATen/native/TensorFactories.cpp) as `DataLoader` calls
//! them; M. Matsumoto and T. Nishimura, "Mersenne Twister" (MT19937); SplitMix64.

/// Words of MT19937's state.
const WORDS: usize = 624;
/// How far apart the words are that are mixed.
const APART: usize = 397;

/// A number that looks like chance, from another.
pub(super) fn mixed(i: u64) -> u64 {
    let mut z = i.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The order in which PyTorch's `DataLoader(shuffle=True)` visits `n` samples in its first epoch, with a generator of this
/// seed.
///
/// # Errors
/// More samples than PyTorch draws 32-bit numbers for.
pub fn shuffled(n: usize, seed: u32) -> Result<Vec<usize>, String> {
    if n as u64 > u64::from(u32::MAX) / 20 {
        return Err(format!("{n} frames: PyTorch shuffles so many with 64-bit numbers, which is not done here"));
    }
    let mut twister = Twister::new(seed);
    // The loader draws a 64-bit seed for its workers before the sampler draws anything.
    twister.next();
    twister.next();
    let mut order: Vec<usize> = (0..n).collect();
    for i in 0..n.saturating_sub(1) {
        let step = twister.next() as usize % (n - i);
        order.swap(i, i + step);
    }
    Ok(order)
}

struct Twister {
    state: [u32; WORDS],
    at: usize,
}

impl Twister {
    fn new(seed: u32) -> Self {
        let mut state = [seed; WORDS];
        for i in 1..WORDS {
            let last = state[i - 1];
            state[i] = (last ^ (last >> 30)).wrapping_mul(1_812_433_253).wrapping_add(i as u32);
        }
        Twister { state, at: WORDS }
    }

    fn next(&mut self) -> u32 {
        if self.at == WORDS {
            for i in 0..WORDS {
                let word = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % WORDS] & 0x7fff_ffff);
                let odd = if word & 1 == 1 { 0x9908_b0df } else { 0 };
                self.state[i] = self.state[(i + APART) % WORDS] ^ (word >> 1) ^ odd;
            }
            self.at = 0;
        }
        let mut word = self.state[self.at];
        self.at += 1;
        word ^= word >> 11;
        word ^= (word << 7) & 0x9d2c_5680;
        word ^= (word << 15) & 0xefc6_0000;
        word ^ (word >> 18)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_visited_as_pytorch_visits_them() {
        // torch 2.7.1: DataLoader(shuffle=True, generator=torch.Generator().manual_seed(0)).
        assert_eq!(shuffled(1, 0).unwrap(), [0]);
        assert_eq!(shuffled(2, 0).unwrap(), [1, 0]);
        assert_eq!(shuffled(10, 0).unwrap(), [3, 7, 5, 2, 0, 8, 1, 6, 9, 4]);
        let many = shuffled(1000, 0).unwrap();
        assert_eq!(many[..12], [933, 484, 39, 190, 47, 528, 899, 145, 829, 966, 826, 664]);
        assert_eq!(many.iter().enumerate().map(|(i, v)| i * v).sum::<usize>(), 249_611_412);
        assert!(shuffled(usize::MAX, 0).is_err());
    }
}
