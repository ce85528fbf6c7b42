//! Tests of paired differences that need no normal distribution.

/// Two-sided p below which a result is commonly called significant.
pub(crate) const SIGNIFICANT: f64 = 0.05;

/// Pairs up to which all sign patterns are gone through.
const ENUMERATED: usize = 22;

/// Exact two-sided p of the sign-flip test: the share of the `2^n` ways to give the differences signs whose sum is at
/// least as far from 0 as the one seen. If neither variant is better, each way is equally likely.
///
/// `None` without pairs, with more than 22, or with a difference that is not a number.
pub(crate) fn sign_flip_p(differences: &[f64]) -> Option<f64> {
    let n = differences.len();
    if n == 0 || n > ENUMERATED || differences.iter().any(|difference| !difference.is_finite()) {
        return None;
    }
    let seen = differences.iter().sum::<f64>().abs();
    // The same differences sum to a little more or less in another order: such a way counts as equal.
    let slack = 1e-12 * differences.iter().map(|difference| difference.abs()).sum::<f64>();
    // The first keeps its sign: turning all of them gives a sum as large.
    let ways = 1_u32 << (n - 1);
    let sum = |way: u32| {
        let signed = differences[1..].iter().enumerate();
        let signed =
            signed.map(|(at, difference)| if way >> at & 1 == 1 { -difference } else { *difference });
        (differences[0] + signed.sum::<f64>()).abs()
    };
    let extreme = (0..ways).filter(|&way| sum(way) >= seen - slack).count();
    Some(extreme as f64 / f64::from(ways))
}

/// The smallest p that [`sign_flip_p`] can give with `n` pairs: two of the `2^n` ways are as extreme as the one seen
/// when all differences point the same way.
pub(crate) fn smallest_sign_flip_p(n: usize) -> f64 {
    2.0 / 2.0_f64.powi(n as i32)
}

/// The fewest pairs with which one test among `tests`, adjusted by [`holm`], can reach [`SIGNIFICANT`].
pub(crate) fn fewest_pairs(tests: usize) -> usize {
    let reaches = |n: &usize| smallest_sign_flip_p(*n) * tests as f64 <= SIGNIFICANT;
    (1..).find(reaches).expect("p halves with each pair")
}

/// Holm's step-down adjustment: each p that stays below a level does so with the chance of any false one among all of
/// them below that level.
pub(crate) fn holm(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<_> = (0..p.len()).collect();
    order.sort_by(|&a, &b| p[a].total_cmp(&p[b]));
    let mut adjusted = vec![0.0; p.len()];
    let mut largest = 0.0_f64;
    for (rank, &at) in order.iter().enumerate() {
        largest = largest.max(((p.len() - rank) as f64 * p[at]).min(1.0));
        adjusted[at] = largest;
    }
    adjusted
}

#[cfg(test)]
mod tests {
    use approx::assert_relative_eq;
    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    struct Golden {
        sign_flip: Vec<SignFlip>,
        holm: Vec<Holm>,
    }

    #[derive(Deserialize)]
    struct SignFlip {
        differences: Vec<f64>,
        p: f64,
    }

    #[derive(Deserialize)]
    struct Holm {
        p: Vec<f64>,
        adjusted: Vec<f64>,
    }

    /// `reference/paired_tests.py`: scipy's `permutation_test` over all signs, statsmodels' `multipletests`.
    fn golden() -> Golden {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../reference/values/paired_tests.json");
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    #[test]
    fn sign_flips_are_those_of_scipy() {
        let cases = golden().sign_flip;
        assert!(cases.len() > 10);
        for SignFlip { differences, p } in cases {
            assert_relative_eq!(sign_flip_p(&differences).unwrap(), p, max_relative = 1e-12);
        }
    }

    #[test]
    fn holm_is_that_of_statsmodels() {
        let cases = golden().holm;
        assert!(cases.len() > 5);
        for Holm { p, adjusted } in cases {
            for (own, golden) in holm(&p).into_iter().zip(adjusted) {
                assert_relative_eq!(own, golden, max_relative = 1e-12);
            }
        }
    }

    #[test]
    fn what_has_no_exact_p() {
        assert_eq!(sign_flip_p(&[]), None);
        assert_eq!(sign_flip_p(&[0.1, f64::NAN]), None);
        assert_eq!(sign_flip_p(&[0.1; 23]), None);
    }

    #[test]
    fn six_pairs_are_needed_for_five_percent_and_more_for_several_tests() {
        /* Python: [2 / 2 ** n for n in (3, 5, 6)] */
        assert_eq!([3, 5, 6].map(smallest_sign_flip_p), [0.25, 0.0625, 0.03125]);
        // 4 * 2 / 2^8 = 0.031, 8 * 2 / 2^9 = 0.031
        assert_eq!([1, 4, 8].map(fewest_pairs), [6, 8, 9]);
    }
}
