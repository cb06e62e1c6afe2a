use super::*;
use crate::arch::{Isa, Kernel, Simd};
use minigpt_core::reference::activation;
use std::vec::Vec;

#[derive(Clone, Copy, Debug)]
enum Function {
    Exp,
    NormalDistribution,
    Activate(Activation),
    Derivative(Activation),
}

struct Map<'x>(Function, &'x mut [f32]);
impl Kernel for Map<'_> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self, t: V::Token) {
        for chunk in self.1.chunks_mut(V::LANES) {
            let x = V::load_partial(t, chunk);
            let y = match self.0 {
                Function::Exp => exp(t, x),
                Function::NormalDistribution => normal_distribution(t, x),
                Function::Activate(f) => activate(t, f, x),
                Function::Derivative(f) => derivative(t, f, x),
            };
            y.store_partial(chunk);
        }
    }
}

fn map(simd: Simd, function: Function, x: &[f32]) -> Vec<f32> {
    let mut y = x.to_vec();
    simd.dispatch(Map(function, &mut y));
    y
}

const ALL: [Activation; 5] =
    [Activation::GeluTanh, Activation::GeluErf, Activation::Relu, Activation::ReluSquared, Activation::Silu];

fn is_relu(f: Activation) -> bool {
    matches!(f, Activation::Relu | Activation::ReluSquared)
}

fn simds() -> impl Iterator<Item = Simd> {
    Isa::available().filter_map(Simd::detect)
}

/// The gap between neighbours at `x`.
fn ulp(x: f64) -> f64 {
    let exponent = libm::ilogb(x).clamp(-126, 127);
    libm::ldexp(1.0, exponent - 23)
}

/// Every 1009th f32: all signs and exponents, thousands of each. Every other one under Miri would take hours.
fn everywhere() -> Vec<f32> {
    let step = if cfg!(miri) { 10_000_019 } else { 1009 };
    (0..=u32::MAX).step_by(step).map(f32::from_bits).filter(|x| x.is_finite()).collect()
}

fn assert_within(function: Function, exact: fn(f64) -> f64, bound: f64) {
    let x = everywhere();
    let exact: Vec<f64> = x.iter().map(|&x| exact(f64::from(x))).collect();
    for simd in simds() {
        let mut worst = (0.0, 0.0);
        for ((&x, &exact), y) in x.iter().zip(&exact).zip(map(simd, function, &x)) {
            // What f32 cannot hold must be infinite.
            if exact > f64::from(f32::MAX) {
                assert!(y >= f32::MAX, "{function:?}({x}) = {y}");
            } else {
                let error = (f64::from(y) - exact).abs() / ulp(exact);
                if error.is_nan() || error > worst.0 {
                    worst = (error, x);
                }
            }
        }
        assert!(worst.0 <= bound, "{function:?} on {}: {} ulp at {}", simd.isa(), worst.0, worst.1);
    }
}

#[test]
fn exp_is_within_its_bound() {
    assert_within(Function::Exp, libm::exp, 1.0);
}

/// From -12 to 12, in even steps.
fn around_zero() -> Vec<f32> {
    let step = if cfg!(miri) { 9973 } else { 1 };
    (-400_000..=400_000).step_by(step).map(|i| i as f32 * 3e-5).collect()
}

#[test]
fn the_normal_distribution_is_within_its_bound() {
    let x = [everywhere(), around_zero()].concat();
    let exact = |x: f32| 0.5 * libm::erfc(-f64::from(x) * core::f64::consts::FRAC_1_SQRT_2);
    let exact: Vec<f64> = x.iter().map(|&x| exact(x)).collect();
    for simd in simds() {
        for ((&x, &exact), y) in x.iter().zip(&exact).zip(map(simd, Function::NormalDistribution, &x)) {
            let error = (f64::from(y) - exact).abs();
            assert!(error < 1.6e-7, "at {x} on {}: {y} {exact}", simd.isa());
        }
    }
}

#[test]
fn limits_and_nan_come_out_as_they_should() {
    let x = [f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, f32::NAN, 88.8, -200.0];
    for simd in simds() {
        let exp = map(simd, Function::Exp, &x);
        assert_eq!(exp[..4], [f32::INFINITY, 0.0, 1.0, 1.0]);
        assert_eq!(exp[5..], [f32::INFINITY, 0.0]);
        let normal = map(simd, Function::NormalDistribution, &x);
        assert_eq!(normal[..4], [1.0, 0.0, 0.5, 0.5]);
        assert!(normal[4].is_nan());
        assert!(exp[4].is_nan());
        for f in ALL {
            let y = map(simd, Function::Activate(f), &x);
            assert_eq!((y[0], y[2]), (f32::INFINITY, 0.0));
            assert!(y[4].is_nan(), "{f:?}");
            // 0 of something infinite, as in the reference.
            assert!(if is_relu(f) { y[1] == 0.0 } else { y[1].is_nan() }, "{f:?}");
            let limit = if f == Activation::ReluSquared { x[5] * x[5] } else { x[5] };
            assert!((y[5] - limit).abs() <= 1e-5 && y[6] == 0.0);
        }
    }
}

#[test]
fn derivatives_reach_their_limits_and_stay_there() {
    let x: Vec<f32> = (0..120).map(|i| 12.0 * libm::exp2f(i as f32)).filter(|x| *x < 1e38).collect();
    let minus: Vec<f32> = x.iter().map(|x| -x).collect();
    for simd in simds() {
        for f in ALL {
            // That of SiLU is at 12 a little off.
            let from = if f == Activation::Silu { 3 } else { 0 };
            let above = map(simd, Function::Derivative(f), &x[from..]);
            let limit = |x: f32| if f == Activation::ReluSquared { x + x } else { 1.0 };
            let there = above.iter().zip(&x[from..]).all(|(&d, &x)| d == limit(x));
            assert!(there, "{f:?} on {}: {above:?}", simd.isa());
            let below = map(simd, Function::Derivative(f), &minus[from..]);
            assert!(below.iter().all(|d| d.abs() < 1e-30), "{f:?} on {}: {below:?}", simd.isa());
            let nan = map(simd, Function::Derivative(f), &[f32::NAN; 3]);
            assert!(f == Activation::Relu || nan.iter().all(|d| d.is_nan()), "{f:?} on {}", simd.isa());
        }
    }
}

#[test]
fn activations_and_derivatives_equal_the_reference() {
    let x = around_zero();
    for simd in simds() {
        for f in ALL {
            let (y, d) = (map(simd, Function::Activate(f), &x), map(simd, Function::Derivative(f), &x));
            for (i, &x) in x.iter().enumerate() {
                let exact = activation::activate(f, f64::from(x));
                let slope = activation::derivative(f, f64::from(x));
                let scale = f64::from(x).abs().max(1.0).max(exact);
                let error = (f64::from(y[i]) - exact).abs() / scale;
                assert!(error < 2e-7, "{f:?}({x}) on {}: {} {exact}", simd.isa(), y[i]);
                assert!(
                    (f64::from(d[i]) - slope).abs() < 4e-7,
                    "{f:?}'({x}) on {}: {} {slope}",
                    simd.isa(),
                    d[i]
                );
            }
        }
    }
}
