//! The choice of the next token.
//!
//! The steps are in the order of llama.cpp: repetition penalty, `top_k`, `top_p`, `min_p`,
//! temperature, then one random draw. Random numbers come from SplitMix64, so a seed gives the same
//! tokens on every machine that computes the same logits.

use super::options::Sampling;
use crate::error::Result;
use crate::memory;

/// The number of most recent tokens that the repetition penalty considers.
const REPEATS: usize = 64;

/// A sampler and its state.
pub(super) struct Sampler {
    options: Sampling,
    state: u64,
    /// `(token, logit)`, with capacity for the vocabulary.
    candidates: Vec<(u32, f32)>,
}

impl Sampler {
    pub fn new(options: &Sampling, vocabulary: usize) -> Result<Sampler> {
        Ok(Sampler {
            options: options.clone(),
            state: options.seed,
            candidates: memory::with_capacity(vocabulary, "candidates for the next token")?,
        })
    }

    pub fn options(&self) -> &Sampling {
        &self.options
    }

    /// The state of the random number generator.
    pub fn state(&self) -> u64 {
        self.state
    }

    /// Restores the state of the random number generator.
    pub fn restore(&mut self, state: u64) {
        self.state = state;
    }

    /// Whether it always chooses the arg-max and considers nothing else.
    pub fn is_greedy(&self) -> bool {
        self.options.temperature == 0.0 && self.options.repeat_penalty == 1.0
    }

    /// Chooses a token by the `logits` `(vocabulary)` and the tokens so far.
    pub fn sample(&mut self, logits: &[f32], tokens: &[u32]) -> u32 {
        let o = &self.options;
        let c = &mut self.candidates;
        c.clear();
        c.extend((0..).zip(logits.iter().copied()));
        if o.repeat_penalty != 1.0 {
            let recent = &tokens[tokens.len().saturating_sub(REPEATS)..];
            for (i, &token) in recent.iter().enumerate() {
                // Each token is penalised once, however often it occurs.
                if recent[..i].contains(&token) {
                    continue;
                }
                if let Some((_, logit)) = c.get_mut(token as usize) {
                    if *logit > 0.0 {
                        *logit /= o.repeat_penalty;
                    } else {
                        *logit *= o.repeat_penalty;
                    }
                }
            }
        }
        // Ties go to the lower id, so that the result does not depend on the sorting algorithm.
        let likelier = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if o.temperature == 0.0 {
            return c.iter().min_by(|a, b| likelier(a, b)).map_or(0, |c| c.0);
        }
        if o.top_k > 0 && o.top_k < c.len() {
            c.select_nth_unstable_by(o.top_k - 1, likelier);
            c.truncate(o.top_k);
        }
        c.sort_unstable_by(likelier);
        let Some(&(first, top)) = c.first() else {
            return 0;
        };
        if o.top_p < 1.0 {
            let sum: f64 = c.iter().map(|c| f64::from(c.1 - top).exp()).sum();
            let mut seen = 0.0;
            let enough = c.iter().position(|c| {
                seen += f64::from(c.1 - top).exp();
                seen >= f64::from(o.top_p) * sum
            });
            c.truncate(enough.map_or(c.len(), |i| i + 1));
        }
        if o.min_p > 0.0 {
            let least = top + o.min_p.ln();
            c.retain(|c| c.1 >= least);
        }
        let weight = |logit: f32| f64::from((logit - top) / o.temperature).exp();
        let sum: f64 = c.iter().map(|c| weight(c.1)).sum();
        let draw = unit(&mut self.state) * sum;
        let mut seen = 0.0;
        for &(token, logit) in c.iter() {
            seen += weight(logit);
            if seen > draw {
                return token;
            }
        }
        first
    }
}

/// The next number of SplitMix64, in 0..1.
fn unit(state: &mut u64) -> f64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ *state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ z >> 31) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share_of_each(options: Sampling, logits: &[f32]) -> Vec<f64> {
        let mut s = Sampler::new(&options, logits.len()).unwrap();
        let mut counts = vec![0.0; logits.len()];
        for _ in 0..20000 {
            counts[s.sample(logits, &[]) as usize] += 1.0 / 20000.0;
        }
        counts
    }

    fn plain() -> Sampling {
        Sampling {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            ..Sampling::default()
        }
    }

    #[test]
    fn shares_follow_the_softmax() {
        let p = [0.5f64, 0.25, 0.15, 0.1];
        let logits = p.map(|p| p.ln() as f32);
        for (p, share) in p.iter().zip(share_of_each(plain(), &logits)) {
            assert!((p - share).abs() < 0.015, "{p} {share}");
        }
        let cold = Sampling {
            temperature: 0.5,
            ..plain()
        };
        let squares: f64 = p.iter().map(|p| p * p).sum();
        for (p, share) in p.iter().zip(share_of_each(cold, &logits)) {
            assert!((p * p / squares - share).abs() < 0.015);
        }
    }

    #[test]
    fn what_is_cut_never_comes() {
        let logits = [0.5f64, 0.25, 0.15, 0.1].map(|p| p.ln() as f32);
        for (options, kept) in [
            (
                Sampling {
                    top_k: 2,
                    ..plain()
                },
                2,
            ),
            (
                Sampling {
                    top_p: 0.7,
                    ..plain()
                },
                2,
            ),
            (
                Sampling {
                    top_p: 0.8,
                    ..plain()
                },
                3,
            ),
            (
                Sampling {
                    min_p: 0.25,
                    ..plain()
                },
                3,
            ),
            (
                Sampling {
                    top_p: 0.0,
                    ..plain()
                },
                1,
            ),
            (
                Sampling {
                    temperature: 0.0,
                    ..plain()
                },
                1,
            ),
        ] {
            let shares = share_of_each(options.clone(), &logits);
            assert!(shares[..kept].iter().all(|&s| s > 0.0), "{options:?}");
            assert!(shares[kept..].iter().all(|&s| s == 0.0), "{options:?}");
        }
    }

    #[test]
    fn repetition_is_punished_once_a_token() {
        let greedy = Sampling {
            temperature: 0.0,
            repeat_penalty: 2.0,
            ..plain()
        };
        let mut s = Sampler::new(&greedy, 3).unwrap();
        assert_eq!(s.sample(&[3.0, 2.0, -1.0], &[]), 0);
        assert_eq!(s.sample(&[3.0, 2.0, -1.0], &[0]), 1);
        assert_eq!(s.sample(&[3.9, 2.0, -1.0], &[0, 1, 0, 0]), 0);
        assert_eq!(s.sample(&[-3.0, -2.0, -1.5], &[2]), 1);
    }

    #[test]
    fn the_same_seed_the_same_tokens() {
        let logits: Vec<f32> = (0..50).map(|i| (i as f32 * 0.7).sin()).collect();
        let run = |seed| {
            let mut s = Sampler::new(
                &Sampling {
                    seed,
                    ..Sampling::default()
                },
                50,
            )
            .unwrap();
            (0..40).map(|_| s.sample(&logits, &[])).collect::<Vec<_>>()
        };
        assert_eq!(run(3), run(3));
        assert_ne!(run(3), run(4));
    }
}
