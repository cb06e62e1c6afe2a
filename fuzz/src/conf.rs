//! The section `CONF` of a checkpoint field by field, in both versions, to be edited.

use minigpt_core::rng::Rng;

use super::file::{take, take_varint, varint};

/// The fields of the section `CONF`, in their order.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Field {
    Number,
    OptionalNumber,
    Float,
    Bool,
    /// How many variants there are, and of which a float, and of which a choice of two, comes behind the number.
    Choice {
        variants: u64,
        float: Option<u64>,
        pairing: bool,
    },
}

const fn choice(variants: u64) -> Field {
    Field::Choice { variants, float: None, pairing: false }
}

const SCALE: Field = Field::Choice { variants: 3, float: Some(2), pairing: false };

const FIELDS_1: &[Field] = &[
    Field::Number,
    Field::Number,
    Field::Number,
    Field::Number,
    Field::Number,
    Field::Number,
    choice(4),
    choice(3),
    SCALE,
    Field::Bool,
    choice(3),
    Field::Bool,
    Field::Float,
    Field::Bool,
    Field::Float,
];

const FIELDS_2: &[Field] = &[
    Field::Number,
    Field::Number,
    Field::Number,
    Field::Number,
    Field::OptionalNumber,
    Field::Number,
    Field::OptionalNumber,
    Field::Number,
    Field::Number,
    Field::Choice { variants: 4, float: Some(2), pairing: true },
    choice(3),
    choice(2),
    choice(3),
    Field::Bool,
    SCALE,
    Field::Bool,
    choice(5),
    Field::Bool,
    Field::Bool,
    Field::Bool,
    Field::Bool,
    Field::Float,
    Field::Bool,
    Field::Float,
];

/// The bytes of each field of a config, as far as it can be told apart.
fn split(mut body: &[u8], version: u32) -> Option<Vec<&[u8]>> {
    let mut fields = Vec::new();
    for field in if version == 1 { FIELDS_1 } else { FIELDS_2 } {
        let begin = body;
        match *field {
            Field::Number => drop(take_varint(&mut body)?),
            Field::OptionalNumber => {
                if take(&mut body, 1)? != [0] {
                    take_varint(&mut body)?;
                }
            }
            Field::Float => drop(take(&mut body, 8)?),
            Field::Bool => drop(take(&mut body, 1)?),
            Field::Choice { float, pairing, .. } => {
                if float == Some(take_varint(&mut body)?) {
                    take(&mut body, 8 + usize::from(pairing))?;
                }
            }
        }
        fields.push(&begin[..begin.len() - body.len()]);
    }
    body.is_empty().then_some(fields)
}

/// The section `CONF` with another value of one field: a small number, or one of its variants.
pub(super) fn with_change(body: &[u8], version: u32, rng: &mut Rng) -> Option<Vec<u8>> {
    let fields = split(body, version)?;
    let kinds = if version == 1 { FIELDS_1 } else { FIELDS_2 };
    // Most changes are to the numbers, from which the shapes follow.
    let among = if rng.below(2) == 0 { kinds.len() } else { 9.min(kinds.len()) };
    let place = rng.below(among as u64) as usize;
    let mut new = Vec::new();
    let usual = |rng: &mut Rng| [1e-5f64, 0.5, 1.0, 1e4][rng.below(4) as usize].to_le_bytes();
    match kinds[place] {
        // The last of the numbers of version 2 is the prefix, which may be 0 and mostly is.
        Field::Number if version > 1 && place == 8 => varint(rng.below(6) / 3, &mut new),
        Field::Number => varint(1 + rng.below(9), &mut new),
        Field::OptionalNumber => match rng.below(3) {
            0 => new.push(0),
            _ => {
                new.push(1);
                varint(1 + rng.below(4), &mut new);
            }
        },
        Field::Float => new.extend(usual(rng)),
        Field::Bool => new.push(rng.below(2) as u8),
        Field::Choice { variants, float, pairing } => {
            let variant = rng.below(variants);
            varint(variant, &mut new);
            if float == Some(variant) {
                new.extend(usual(rng));
                if pairing {
                    new.push(rng.below(2) as u8);
                }
            }
        }
    }
    let changed = fields.iter().enumerate().map(|(i, field)| if i == place { &new[..] } else { *field });
    Some(changed.collect::<Vec<_>>().concat())
}

/// A section `CONF` of version 1 as version 2 has it.
pub(super) fn converted(body: &[u8]) -> Option<Vec<u8>> {
    let fields = split(body, 1)?;
    let [
        vocab,
        context,
        layers,
        heads,
        d_model,
        d_ff,
        position,
        place,
        scale,
        residual,
        activation,
        bias,
        ..,
    ] = fields[..]
    else {
        return None;
    };
    let rotary = [&[2][..], &10_000f64.to_le_bytes(), &[0]].concat();
    let position = if position == [2] { &rotary[..] } else { position };
    let (none, causal, layer, no) = (&[0][..], &[0][..], &[0][..], &[0][..]);
    let begin =
        [vocab, context, layers, heads, none, d_model, none, d_ff, &[0], position, causal, layer, place];
    let rest = [no, scale, residual, activation, no, bias, bias, bias];
    Some([begin.concat(), rest.concat(), fields[12..].concat()].concat())
}

/// A section `CONF` of version 2 as version 1 has it, if it can tell that model.
pub(super) fn converted_back(body: &[u8]) -> Option<Vec<u8>> {
    let fields = split(body, 2)?;
    let position = if fields[9][0] == 2 { &[2][..] } else { fields[9] };
    let begin =
        [&fields[..4], &[fields[5], fields[7], position, fields[12], fields[14], fields[15], fields[16]]];
    let old = [begin.concat().concat(), [&[fields[18]][..], &fields[21..]].concat().concat()].concat();
    (converted(&old)? == body).then_some(old)
}
