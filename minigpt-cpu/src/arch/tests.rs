//! Every vector type against plain f32 arithmetic, lane by lane.

use super::*;
use minigpt_core::Dtype;
use minigpt_core::reference::weights::{encode_half, weight_at};
use minigpt_core::rng::{Rng, Stream};
use std::vec::Vec;

fn simds() -> impl Iterator<Item = Simd> {
    Isa::available().filter_map(Simd::detect)
}

const LEFT: [f32; 16] =
    [0.0, -0.0, 1.5, -2.5, 3.75, 1e-38, -1e30, 0.1, 7.0, -0.3, 2.0, 100.5, -1.0, 0.5, 1.25, -9.0];
const RIGHT: [f32; 16] =
    [1.0, 2.0, -1.5, 0.25, 3.75, 2e-3, 5.0, -0.1, 0.5, 12.0, -2.0, 3.5, -1.0, 8.0, -1.25, 3.0];

struct Lanes;
impl Kernel for Lanes {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self, t: V::Token) {
        let (a, b) = (V::load(t, &LEFT), V::load(t, &RIGHT));
        let check = |name: &str, got: V, want: &dyn Fn(f32, f32) -> f32| {
            let mut lanes = [0.0; 16];
            got.store(&mut lanes);
            for i in 0..V::LANES {
                let want = want(LEFT[i], RIGHT[i]);
                assert_eq!(lanes[i].to_bits(), want.to_bits(), "{name} lane {i}: {} {want}", lanes[i]);
            }
        };
        check("add", a + b, &|a, b| a + b);
        check("sub", a - b, &|a, b| a - b);
        check("mul", a * b, &|a, b| a * b);
        check("div", a / b, &|a, b| a / b);
        check("neg", -a, &|a, _| -a);
        check("sqrt", (b * b).sqrt(), &|_, b| (b * b).sqrt());
        check("min", a.min(b), &|a, b| if a < b { a } else { b });
        check("max", a.max(b), &|a, b| if a > b { a } else { b });
        check("round", b.round() + V::splat(t, 0.0), &|_, b| b.round_ties_even() + 0.0);
        check("select", V::select(a.lt(b), a, b), &|a, b| if a < b { a } else { b });
        let one = V::splat(t, 1.5);
        check("scale", one.scale(V::splat(t, -140.0)), &|_, _| f32::from_bits(0x300));
        check("scale up", one.scale(V::splat(t, 127.0)), &|_, _| f32::from_bits(0x7f40_0000));
        let nan = V::splat(t, f32::NAN);
        check("max with NaN", nan.max(b), &|_, b| b);
        check("min with NaN", nan.min(b), &|_, b| b);
        let fused = a.mul_add(b, one);
        let mut lanes = [0.0; 16];
        fused.store(&mut lanes);
        for i in 0..V::LANES {
            let want = f64::from(LEFT[i]) * f64::from(RIGHT[i]) + 1.5;
            assert!((f64::from(lanes[i]) - want).abs() <= 1.3e-7 * (want.abs() + 1.5), "mul_add lane {i}");
        }
    }
}

#[test]
fn lanes_compute_what_f32_computes() {
    simds().for_each(|simd| simd.dispatch(Lanes));
}

struct Partial;
impl Kernel for Partial {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self, t: V::Token) {
        for len in 0..=20 {
            let source: Vec<f32> = (0..len).map(|i| i as f32 + 1.0).collect();
            let v = V::load_partial(t, &source);
            let mut all = [-1.0; 16];
            v.store(&mut all);
            for (i, &x) in all[..V::LANES].iter().enumerate() {
                assert_eq!(x, if i < len { i as f32 + 1.0 } else { 0.0 });
            }
            let mut room = [-1.0; 20];
            v.store_partial(&mut room[..len]);
            for (i, &x) in room.iter().enumerate() {
                assert_eq!(x, if i < len.min(V::LANES) { i as f32 + 1.0 } else { -1.0 });
            }
        }
    }
}

#[test]
fn partial_loads_and_stores_touch_only_what_is_there() {
    simds().for_each(|simd| simd.dispatch(Partial));
}

struct Reductions;
impl Kernel for Reductions {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self, t: V::Token) {
        let mut lanes = LEFT[..V::LANES].to_vec();
        let largest = lanes.iter().copied().fold(f32::MIN, f32::max);
        assert_eq!(V::load(t, &LEFT).largest(), largest);
        while lanes.len() > 1 {
            let upper = lanes.split_off(lanes.len() / 2);
            lanes.iter_mut().zip(upper).for_each(|(a, b)| *a += b);
        }
        assert_eq!(V::load(t, &LEFT).sum(), lanes[0]);
    }
}

#[test]
fn reductions_fold_halves_in_a_fixed_order() {
    simds().for_each(|simd| simd.dispatch(Reductions));
}

struct Widened;
impl Kernel for Widened {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self, t: V::Token) {
        let same = |name: &str, got: V, want: &dyn Fn(usize) -> f64| {
            let mut lanes = [0.0; 16];
            got.store(&mut lanes);
            for (i, &lane) in lanes[..V::LANES].iter().enumerate() {
                let (found, want) = (f64::from(lane), want(i));
                let both_nan = found.is_nan() && want.is_nan();
                assert!(both_nan || found.to_bits() == want.to_bits(), "{name} {i}: {found} {want}");
            }
        };
        // Under Miri, all of them take many minutes.
        let step = if cfg!(miri) { 251 } else { 1 };
        let every: Vec<[u8; 2]> = (0..=u16::MAX).step_by(step).map(u16::to_le_bytes).collect();
        for x in every.chunks_exact(V::LANES) {
            let of = |dtype: Dtype| move |i: usize| weight_at(x.as_flattened(), dtype, i);
            same("f16", V::widen_f16(t, x), &of(Dtype::F16));
            same("bf16", V::widen_bf16(t, x), &of(Dtype::Bf16));
            same("one f16", V::splat_f16(t, x[1]), &|_| weight_at(&x[1], Dtype::F16, 0));
        }
        let every: Vec<u8> = (0..=u8::MAX).collect();
        for x in every.chunks_exact(V::LANES) {
            same("i8", V::widen_i8(t, x), &|i| f64::from(x[i] as i8));
            same("low bits", V::widen_low(t, x), &|i| f64::from(x[i] & 15) - 8.0);
            same("high bits", V::widen_high(t, x), &|i| f64::from(x[i] >> 4) - 8.0);
        }
    }
}

#[test]
fn every_narrow_number_widens_to_what_the_reference_reads() {
    simds().for_each(|simd| simd.dispatch(Widened));
}

struct Narrowed;
impl Kernel for Narrowed {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self, t: V::Token) {
        // Around each bf16 and each middle between two: all upper halves, with lower ones near ties; and any numbers.
        let step = if cfg!(miri) { 251 } else { 1 };
        let near = [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff];
        let near =
            (0..=u16::MAX).step_by(step).flat_map(|upper| near.map(|lower| u32::from(upper) << 16 | lower));
        let mut rng = Rng::new(5, Stream::User);
        let any = (0..(1 << 18) / step).map(|_| rng.next_u32());
        let all: Vec<f32> = near.chain(any).map(f32::from_bits).collect();
        for x in all.chunks_exact(V::LANES) {
            let (mut narrow, mut rounded) = ([[7; 2]; 17], [0.0; 16]);
            V::load(t, x).narrow_bf16(&mut narrow);
            V::load(t, x).round_bf16().store(&mut rounded);
            for (i, x) in x.iter().enumerate() {
                if x.is_nan() {
                    // Which one it becomes, a conversion may choose.
                    let is_nan = |upper: u32| f32::from_bits(upper << 16).is_nan();
                    assert!(is_nan(u16::from_le_bytes(narrow[i]).into()) && rounded[i].is_nan(), "{x:e}");
                    continue;
                }
                let expected = encode_half(f64::from(*x), Dtype::Bf16);
                assert_eq!(narrow[i], expected, "{x:e}, {:08x}", x.to_bits());
                assert_eq!(rounded[i].to_bits() >> 16, u32::from(u16::from_le_bytes(expected)), "{x:e}");
                assert_eq!(rounded[i].to_bits() as u16, 0, "{x:e}");
            }
            assert_eq!(narrow[V::LANES], [7; 2]);
        }
    }
}

#[test]
fn numbers_are_rounded_to_bf16_as_the_references_are() {
    simds().for_each(|simd| simd.dispatch(Narrowed));
}

struct Transpose;
impl Kernel for Transpose {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self, t: V::Token) {
        let (from_stride, to_stride) = (V::LANES + 3, V::LANES + 1);
        let from: Vec<f32> = (0..V::LANES * from_stride).map(|i| i as f32).collect();
        let mut to = std::vec![-1.0; V::LANES * to_stride];
        V::transpose(t, &from, from_stride, &mut to, to_stride);
        for row in 0..V::LANES {
            for col in 0..V::LANES {
                assert_eq!(to[col * to_stride + row], from[row * from_stride + col]);
            }
            assert_eq!(to[row * to_stride + V::LANES], -1.0);
        }
    }
}

#[test]
fn squares_are_transposed_within_their_bounds() {
    simds().for_each(|simd| simd.dispatch(Transpose));
}

#[test]
fn names_parse_back() {
    for &isa in Isa::ALL {
        assert_eq!(isa.name().parse(), Ok(isa));
        if let Some(simd) = Simd::detect(isa) {
            assert_eq!(simd.isa(), isa);
        }
    }
    assert_eq!("sse".parse::<Isa>(), Err(UnknownIsa));
}
