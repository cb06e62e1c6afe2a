//! The picture of a run: loss by step, as SVG, readable on light and on dark pages.

use std::fmt::Write;

/// One line of the chart.
#[derive(Debug, Clone)]
pub struct Curve<'a> {
    /// What the legend says.
    pub name: &'a str,
    /// Its colour, as SVG knows it.
    pub color: &'a str,
    /// (step, loss), in the order of the steps. Points that are not finite are left out.
    pub points: Vec<(f64, f64)>,
}

const WIDTH: f64 = 840.0;
const HEIGHT: f64 = 480.0;
const LEFT: f64 = 72.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 64.0;
const BOTTOM: f64 = 60.0;

/// A round step that makes about `count` of them over `range`: 1, 2 or 5 times a power of ten.
fn round_step(range: f64, count: f64) -> f64 {
    let rough = range / count;
    let power = 10f64.powf(rough.log10().floor());
    [1.0, 2.0, 5.0].into_iter().map(|m| m * power).find(|step| *step >= rough).unwrap_or(10.0 * power)
}

fn ticks(low: f64, high: f64, step: f64) -> impl Iterator<Item = f64> {
    let first = (low / step - 1e-9).ceil() as i64;
    let last = (high / step + 1e-9).floor() as i64;
    (first..=last).map(move |i| i as f64 * step)
}

/// A number without needless digits, as exact as its step.
fn label(value: f64, step: f64) -> String {
    let decimals = (-step.log10().floor()).clamp(0.0, 6.0) as usize;
    format!("{value:.decimals$}")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Draws the curves, and, dashed, the loss that no model can beat, if it is known.
pub fn loss_curves(title: &str, curves: &[Curve<'_>], bound: Option<(&str, f64)>) -> String {
    let finite = |points: &[(f64, f64)]| -> Vec<(f64, f64)> {
        points.iter().copied().filter(|(x, y)| x.is_finite() && y.is_finite()).collect()
    };
    let all: Vec<(f64, f64)> = curves.iter().flat_map(|curve| finite(&curve.points)).collect();
    let losses = || all.iter().map(|&(_, y)| y).chain(bound.map(|(_, y)| y));
    let last = all.iter().map(|&(x, _)| x).fold(1.0, f64::max);
    let (least, most) = (losses().fold(f64::INFINITY, f64::min), losses().fold(f64::NEG_INFINITY, f64::max));
    let (least, most) = match (least, most) {
        _ if least < most => (least, most),
        // One loss alone, or none at all.
        _ if least.is_finite() => (least - 0.5, least + 0.5),
        _ => (0.0, 1.0),
    };
    let y_step = round_step(most - least, 6.0);
    let (low, high) = ((least / y_step).floor() * y_step, (most / y_step).ceil() * y_step);
    let x_step = round_step(last, 8.0).max(1.0);
    let x = |step: f64| LEFT + step / last * (WIDTH - LEFT - RIGHT);
    let y = |loss: f64| HEIGHT - BOTTOM - (loss - low) / (high - low) * (HEIGHT - TOP - BOTTOM);

    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" \
         height=\"{HEIGHT}\" font-family=\"Helvetica, Arial, sans-serif\" font-size=\"13\" fill=\"#444\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" rx=\"8\" fill=\"#fff\"/>\n\
         <text x=\"{LEFT}\" y=\"34\" font-size=\"18\" font-weight=\"bold\" fill=\"#222\">{}</text>\n",
        escaped(title)
    );
    // Writing to a String does not fail.
    for tick in ticks(low, high, y_step) {
        let _ = writeln!(
            svg,
            "<path d=\"M{LEFT} {y:.1}H{}\" stroke=\"#e6e6e6\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            WIDTH - RIGHT,
            LEFT - 10.0,
            y(tick) + 4.5,
            label(tick, y_step),
            y = y(tick),
        );
    }
    for tick in ticks(0.0, last, x_step) {
        let _ = writeln!(
            svg,
            "<path d=\"M{x:.1} {}v6\" stroke=\"#888\"/><text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            HEIGHT - BOTTOM,
            HEIGHT - BOTTOM + 22.0,
            label(tick, x_step),
            x = x(tick),
        );
    }
    let _ = writeln!(
        svg,
        "<path d=\"M{LEFT} {base}H{}\" stroke=\"#888\"/>\
         <text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">step</text>\
         <text transform=\"translate(22 {:.1}) rotate(-90)\" text-anchor=\"middle\">loss (nats per token)</text>",
        WIDTH - RIGHT,
        (LEFT + WIDTH - RIGHT) / 2.0,
        HEIGHT - 14.0,
        (TOP + HEIGHT - BOTTOM) / 2.0,
        base = HEIGHT - BOTTOM,
    );
    if let Some((_, loss)) = bound {
        let _ = writeln!(
            svg,
            "<path d=\"M{LEFT} {:.1}H{}\" stroke=\"#2a9d5c\" stroke-width=\"1.5\" stroke-dasharray=\"7 5\"/>",
            y(loss),
            WIDTH - RIGHT
        );
    }
    for curve in curves {
        let points = finite(&curve.points);
        let path: Vec<String> = points.iter().map(|&(a, b)| format!("{:.1},{:.1}", x(a), y(b))).collect();
        let _ = writeln!(
            svg,
            "<polyline fill=\"none\" stroke=\"{}\" stroke-width=\"2\" stroke-linejoin=\"round\" points=\"{}\"/>",
            curve.color,
            path.join(" ")
        );
        // A few measured points are marked; a curve of hundreds would be a band of dots.
        if points.len() <= 40 {
            for &(a, b) in &points {
                let _ = write!(
                    svg,
                    "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{}\"/>",
                    x(a),
                    y(b),
                    curve.color
                );
            }
            svg.push('\n');
        }
    }
    let entries = curves
        .iter()
        .map(|curve| (curve.name, curve.color, ""))
        .chain(bound.map(|(name, _)| (name, "#2a9d5c", " stroke-dasharray=\"7 5\"")));
    for (i, (name, color, dashes)) in entries.enumerate() {
        let line = TOP + 12.0 + 22.0 * i as f64;
        let _ = writeln!(
            svg,
            "<path d=\"M{} {line}h28\" stroke=\"{color}\" stroke-width=\"2\"{dashes}/><text x=\"{}\" y=\"{}\">{}</text>",
            WIDTH - 250.0,
            WIDTH - 214.0,
            line + 4.5,
            escaped(name)
        );
    }
    svg.push_str("</svg>\n");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(points: &[(f64, f64)]) -> Curve<'static> {
        Curve { name: "training", color: "#888", points: points.to_vec() }
    }

    #[test]
    fn steps_are_round() {
        assert_eq!(round_step(10.0, 5.0), 2.0);
        assert_eq!(round_step(2000.0, 8.0), 500.0);
        assert_eq!(round_step(0.7, 6.0), 0.2);
        assert_eq!(ticks(0.0, 1.0, 0.5).collect::<Vec<_>>(), [0.0, 0.5, 1.0]);
        assert_eq!((label(0.6, 0.2), label(1500.0, 500.0)), ("0.6".into(), "1500".into()));
    }

    #[test]
    fn points_stand_where_the_axes_say() {
        let svg = loss_curves("t", &[curve(&[(0.0, 4.0), (100.0, 1.0)])], None);
        // The axes run from 1 to 4: the curve goes from the upper left corner to the lower right one.
        let expected =
            format!("points=\"{:.1},{:.1} {:.1},{:.1}\"", LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM);
        assert!(svg.contains(&expected), "{svg}");
    }

    #[test]
    fn any_curve_gives_a_picture_without_nan() {
        for points in [&[][..], &[(0.0, 2.0)], &[(0.0, 1.0), (1.0, 1.0)], &[(0.0, f64::NAN), (3.0, 0.0)]] {
            for bound in [None, Some(("entropy", 0.8))] {
                let svg = loss_curves("a < b & c", &[curve(points)], bound);
                assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
                assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
                assert!(svg.contains("a &lt; b &amp; c"));
                assert_eq!(svg.contains("entropy"), bound.is_some());
            }
        }
    }
}
