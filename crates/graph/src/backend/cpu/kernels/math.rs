//! Elementary functions without branches or calls, so that loops over them are vectorised.
//!
//! The f32 functions are polynomials fitted for this file (largest errors in units in the last place are in the tests);
//! infinities, NaN, overflow and gradual underflow follow IEEE 754. The f64 functions are libm's: f64 exists for
//! checks. No fused multiply-add is used, so results have the same bits on every machine.

/// f32
pub mod single {
    const LN2_HI: f32 = 355.0 / 512.0;
    const LN2_LO: f32 = -2.121_944_4e-4;
    /// 1.5 * 2^23: adding it rounds to an integer, which is then in the low bits.
    const ROUND: f32 = 12_582_912.0;

    /// Horner's rule, the constant term first.
    #[inline(always)]
    fn poly<const N: usize>(x: f32, coefficients: [f32; N]) -> f32 {
        let mut sum = coefficients[N - 1];
        for i in (0..N - 1).rev() {
            sum = sum * x + coefficients[i];
        }
        sum
    }

    /// e^x.
    #[inline(always)]
    #[must_use]
    pub fn exp(x: f32) -> f32 {
        // Outside this range the result is 0 or infinity; the comparisons keep NaN.
        let x = if x > 89.0 { 89.0 } else { x };
        let x = if x < -104.0 { -104.0 } else { x };
        let (y, shifted) = reduced(x);
        // 2^n as two factors, so that neither overflows when the product is subnormal or infinite.
        let n = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
        let half = n >> 1;
        y * power_of_two(half) * power_of_two(n.wrapping_sub(half))
    }

    /// [`exp`] for arguments of at most 0 (at the most 88), with subnormal results flushed to 0: for score - max.
    #[inline(always)]
    #[must_use]
    pub fn exp_below(x: f32) -> f32 {
        // Below this 2^n is 0; the comparison keeps NaN.
        let x = if x < -88.0 { -88.0 } else { x };
        let (y, shifted) = reduced(x);
        y * f32::from_bits(shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23)
    }

    /// e^x as a number in [0.7, 1.5] and a power of two, whose exponent is in the low bits of the second number.
    #[inline(always)]
    fn reduced(x: f32) -> (f32, f32) {
        let shifted = x * std::f32::consts::LOG2_E + ROUND;
        let n = shifted - ROUND;
        let r = (x - n * LN2_HI) - n * LN2_LO;
        let p = poly(r, [0.5, 0.166_665_18, 0.041_666_202, 0.008_369_025, 0.001_395_072_4]);
        ((r * r * p + r) + 1.0, shifted)
    }

    #[inline(always)]
    fn power_of_two(n: i32) -> f32 {
        f32::from_bits((n.wrapping_add(127) as u32) << 23)
    }

    /// Natural logarithm; minus infinity at 0, NaN for negative numbers.
    #[inline(always)]
    #[must_use]
    pub fn ln(x: f32) -> f32 {
        let tiny = x < f32::MIN_POSITIVE;
        let scaled = if tiny { x * 8_388_608.0 } else { x };
        // Split at sqrt(1/2): x = 2^e * m with m in [sqrt(1/2), sqrt(2)).
        let bits = scaled.to_bits().wrapping_sub(0x3f35_04f3);
        let e = ((bits as i32) >> 23) as f32 - if tiny { 23.0 } else { 0.0 };
        let f = f32::from_bits((bits & 0x007f_ffff).wrapping_add(0x3f35_04f3)) - 1.0;
        let p = poly(
            f,
            [
                0.333_333_3,
                -0.250_008_2,
                0.200_012_27,
                -0.166_233_56,
                0.142_017_62,
                -0.131_601_95,
                0.127_615_5,
                -0.076_344_3,
            ],
        );
        let square = f * f;
        let tail = (square * f * p + e * LN2_LO) - 0.5 * square;
        let y = (tail + f) + e * LN2_HI;
        let y = if x == f32::INFINITY { x } else { y };
        let y = if x == 0.0 { f32::NEG_INFINITY } else { y };
        if x >= 0.0 { y } else { f32::NAN }
    }

    /// Hyperbolic tangent.
    #[inline(always)]
    #[must_use]
    pub fn tanh(x: f32) -> f32 {
        let size = x.abs();
        let z = x * x;
        let p = poly(
            z,
            [
                -0.333_332_84,
                0.133_314_91,
                -0.053_743_497,
                0.020_650_584,
                -0.005_717_041,
            ],
        );
        let near = x * z * p + x;
        let far = 1.0 - 2.0 / (exp(size + size) + 1.0);
        let y = if size < 0.625 { near } else { far };
        y.copysign(x)
    }

    /// 1 / (1 + exp(-x)), accurate for both signs.
    #[inline(always)]
    #[must_use]
    pub fn sigmoid(x: f32) -> f32 {
        let e = exp(-x.abs());
        let numerator = if x < 0.0 { e } else { 1.0 };
        numerator / (1.0 + e)
    }

    /// Error function.
    #[inline(always)]
    #[must_use]
    #[allow(clippy::approx_constant)] // a fitted coefficient, by chance near 2 / sqrt(pi)
    pub fn erf(x: f32) -> f32 {
        let size = x.abs();
        let near = x * poly(
            x * x,
            [
                1.128_379_2,
                -0.376_126_27,
                0.112_836,
                -0.026_854_444,
                0.005_189_535,
                -0.000_802_084_1,
                0.000_078_891_19,
            ],
        );
        // 1 - erfc with ln(erfc) as a polynomial; above 4 the result is 1.
        let clamped = if size > 4.0 { 4.0 } else { size };
        let p = poly(
            clamped,
            [
                0.000_312_459_76,
                1.127_202_3,
                0.637_964_9,
                0.103_256_27,
                -0.021_906_508,
                0.002_964_014_3,
                -0.000_187_972_55,
            ],
        );
        let far = 1.0 - exp(-p);
        if size < 1.0 { near } else { far.copysign(x) }
    }
}

/// f64
pub mod double {
    pub use libm::{erf, exp, log as ln, tanh};

    /// e^x.
    #[inline]
    #[must_use]
    pub fn exp_below(x: f64) -> f64 {
        exp(x)
    }

    /// 1 / (1 + exp(-x)), accurate for both signs.
    #[inline]
    #[must_use]
    pub fn sigmoid(x: f64) -> f64 {
        let e = exp(-x.abs());
        if x < 0.0 { e / (1.0 + e) } else { 1.0 / (1.0 + e) }
    }
}

#[cfg(test)]
mod tests {
    use super::{double, single};

    /// Distance in units in the last place of the f32 nearest to `exact`.
    fn ulps(got: f32, exact: f64) -> f64 {
        let nearest = exact as f32;
        if got == nearest || (got.is_nan() && exact.is_nan()) {
            return 0.0;
        }
        if !got.is_finite() || !nearest.is_finite() {
            return f64::INFINITY;
        }
        let unit = f64::from(f32::from_bits(nearest.abs().to_bits() + 1)) - f64::from(nearest.abs());
        (f64::from(got) - exact).abs() / unit
    }

    /// Samples of all magnitudes and both signs, with several per power of two.
    fn samples() -> impl Iterator<Item = f32> {
        (0..=u32::MAX)
            .step_by(4001)
            .map(f32::from_bits)
            .chain((-120_000..=120_000).map(|i| i as f32 * 1e-3))
    }

    fn worst(f: fn(f32) -> f32, exact: fn(f64) -> f64) -> (f64, f32) {
        samples()
            .map(|x| (ulps(f(x), exact(f64::from(x))), x))
            .fold((0.0, 0.0), |a, b| if b.0 > a.0 { b } else { a })
    }

    #[test]
    fn errors_are_a_few_units_in_the_last_place() {
        #[allow(clippy::type_complexity)]
        let table: [(&str, fn(f32) -> f32, fn(f64) -> f64, f64); 5] = [
            ("exp", single::exp, libm::exp, 1.5),
            ("ln", single::ln, libm::log, 1.5),
            ("tanh", single::tanh, libm::tanh, 2.0),
            ("sigmoid", single::sigmoid, double::sigmoid, 3.0),
            ("erf", single::erf, libm::erf, 3.0),
        ];
        for (name, f, exact, limit) in table {
            let (error, at) = worst(f, exact);
            assert!(error <= limit, "{name}: {error} ulp at {at:e}");
        }
    }

    #[test]
    fn exponentials_of_scores_agree_with_exp() {
        for x in samples().map(|x| -x.abs()).chain([0.0, -87.3, -87.4, 1e-6, 3.0]) {
            let (below, any) = (single::exp_below(x), single::exp(x));
            let same = below.to_bits() == any.to_bits() || (below.is_nan() && any.is_nan());
            assert!(
                same || (below == 0.0 && any < 1e-37),
                "{x:e}: {below:e} instead of {any:e}"
            );
        }
        assert_eq!(single::exp_below(f32::NEG_INFINITY), 0.0);
        assert!(single::exp_below(f32::NAN).is_nan());
    }

    #[test]
    fn special_values() {
        let inf = f32::INFINITY;
        assert_eq!([single::exp(inf), single::exp(-inf), single::exp(0.0)], [inf, 0.0, 1.0]);
        assert_eq!(
            [single::exp(88.72), single::exp(88.73)].map(f32::is_finite),
            [true, false]
        );
        assert_eq!([single::tanh(inf), single::tanh(-inf)], [1.0, -1.0]);
        assert_eq!([single::erf(inf), single::erf(-inf)], [1.0, -1.0]);
        assert_eq!([single::sigmoid(inf), single::sigmoid(-inf)], [1.0, 0.0]);
        assert_eq!(
            [single::ln(inf), single::ln(0.0), single::ln(-0.0), single::ln(1.0)],
            [inf, -inf, -inf, 0.0]
        );
        assert!(single::ln(-1.0).is_nan() && single::ln(-inf).is_nan());
        for f in [single::exp, single::ln, single::tanh, single::erf, single::sigmoid] {
            assert!(f(f32::NAN).is_nan());
        }
        assert!(single::tanh(-0.0).is_sign_negative() && single::erf(-0.0).is_sign_negative());
    }
}
