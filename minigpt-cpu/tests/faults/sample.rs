//! Faults of the choice of a token.

use minigpt_core::op::{NO_TOKEN, Sample, SampleRow};
use minigpt_cpu::CpuError;

use crate::kernel::{Done, Fault, Kernel, faults};

/// How many rows are live.
fn live(k: &mut Kernel, op: &Sample) -> Result<usize, CpuError> {
    Ok(op.rows.min(k.words(op.live)?[0] as usize))
}

/// Runs the op on live rows that are told other things.
fn on_others(k: &mut Kernel, op: Sample, change: impl Fn(usize, &mut SampleRow)) -> Done {
    let (words, live) = (k.words(op.settings)?, live(k, &op)?);
    let mut others = words.clone();
    for (i, words) in others.as_chunks_mut().0.iter_mut().enumerate().take(live) {
        let mut row = SampleRow::from_words(words);
        change(i, &mut row);
        *words = row.words();
    }
    k.put_words(op.settings, &others)?;
    let done = k.run(op);
    k.put_words(op.settings, &words)?;
    done
}

/// Runs the op on other logits: each is told its row and place.
fn on_logits(k: &mut Kernel, op: Sample, change: impl Fn(usize, usize, f32) -> f32) -> Done {
    let logits = k.get(op.logits)?;
    k.edit(op.logits, |i, x| change(i / op.vocab, i % op.vocab, x))?;
    let done = k.run(op);
    k.put(op.logits, &logits)?;
    done
}

/// Changes the choices, in the ring and side by side: each is told its row.
fn on_choices(k: &mut Kernel, op: Sample, change: impl Fn(usize, u32) -> u32) -> Done {
    k.run(op)?;
    let (settings, live) = (k.words(op.settings)?, live(k, &op)?);
    let mut tokens = k.words(op.tokens)?;
    for (i, words) in settings.as_chunks().0.iter().enumerate().take(live) {
        let next = SampleRow::from_words(words).next as usize;
        tokens[next] = change(i, tokens[next]);
    }
    k.put_words(op.tokens, &tokens)?;
    on_side_by_side(k, &op, |choices| {
        choices.iter_mut().enumerate().for_each(|(i, choice)| *choice = change(i, *choice))
    })
}

/// Changes the choices that stand side by side, after the op.
fn on_side_by_side(k: &mut Kernel, op: &Sample, change: impl FnOnce(&mut [u32])) -> Done {
    let (mut choices, live) = (k.words(op.choices)?, live(k, op)?);
    change(&mut choices[..live]);
    k.put_words(op.choices, &choices)
}

pub(crate) const FAULTS: &[Fault] = faults! {
    Sample {
        "the temperature is forgotten" => |k, op| on_others(k, op, |_, row| {
            if row.config.temperature > 0.0 {
                row.config.temperature = 1.0;
            }
        });
        "what is not greedy is greedy" => |k, op| on_others(k, op, |_, row| row.config.temperature = 0.0);
        "what is greedy is not" => |k, op| on_others(k, op, |_, row| {
            if row.config.temperature == 0.0 {
                row.config.temperature = 1.0;
            }
        });
        "top-k is forgotten" => |k, op| on_others(k, op, |_, row| row.config.top_k = None);
        "top-k keeps 64 at most" => |k, op| on_others(k, op, |_, row| row.config.top_k = row.config.top_k.map(|n| n.min(64)));
        "top-p is forgotten" => |k, op| on_others(k, op, |_, row| row.config.top_p = None);
        "min-p is forgotten" => |k, op| on_others(k, op, |_, row| row.config.min_p = None);
        "the penalty is forgotten" => |k, op| on_others(k, op, |_, row| row.config.repetition_penalty = None);
        "the penalty looks at the newest alone" => |k, op| on_others(k, op, |_, row| row.recent = row.recent.min(1));
        "the penalty does not look around the end of the ring" => |k, op| on_others(k, op, |_, row| {
            row.recent = row.recent.min(row.next - row.ring);
        });
        "the penalty forgets the oldest of a full ring" => |k, op| on_others(k, op, |_, row| {
            row.recent = row.recent.min(row.ring_len - 1);
        });
        "the penalty raises what is below 0" => |k, op| {
            let (settings, tokens, live) = (k.words(op.settings)?, k.words(op.tokens)?, live(k, &op)?);
            let rows: Vec<SampleRow> = settings.as_chunks().0.iter().take(live).map(SampleRow::from_words).collect();
            on_logits(k, op, |i, token, x| match rows.get(i).and_then(|row| Some((row, row.config.repetition_penalty?))) {
                Some((row, penalty)) if x < 0.0 && row.recent_places().any(|place| tokens[place] as usize == token) => {
                    // Times the penalty, it is divided by it.
                    (f64::from(x) / penalty / penalty) as f32
                }
                _ => x,
            })
        };
        "all rows have the settings of the first" => |k, op| {
            let words = k.words(op.settings)?;
            let first = words.as_chunks().0.first().map(SampleRow::from_words);
            on_others(k, op, |_, row| row.config = first.map_or(row.config, |first| first.config))
        };
        "all rows have the number of the first" => |k, op| {
            let words = k.words(op.settings)?;
            let first = words.as_chunks().0.first().map(SampleRow::from_words);
            on_others(k, op, |_, row| row.uniform = first.map_or(row.uniform, |first| first.uniform))
        };
        "the number has 4 bits" => |k, op| on_others(k, op, |_, row| row.uniform = (row.uniform * 16.0).floor() / 16.0);
        "all rows have the logits of the first" => |k, op| {
            let logits = k.get(op.logits)?;
            on_logits(k, op, |_, token, _| logits[token])
        };
        "the last tokens of a vocabulary that fills no vector of 16 are left out" => |k, op| {
            let whole = op.vocab / 16 * 16;
            on_logits(k, op, |_, token, x| if whole > 0 && token >= whole { f32::NEG_INFINITY } else { x })
        };
        "beyond 8192 tokens nothing is chosen" => |k, op| {
            on_logits(k, op, |_, token, x| if token >= 8192 { f32::NEG_INFINITY } else { x })
        };
        "minus infinity is a small number" => |k, op| on_logits(k, op, |_, _, x| x.max(-2.0));
        "NaN is minus infinity" => |k, op| on_logits(k, op, |_, _, x| if x.is_nan() { f32::NEG_INFINITY } else { x });
        "of equal ones the last is the likeliest" => |k, op| {
            let (logits, settings, live) = (k.get(op.logits)?, k.words(op.settings)?, live(k, &op)?);
            let greedy: Vec<bool> =
                settings.as_chunks().0.iter().take(live).map(|w| SampleRow::from_words(w).config.temperature == 0.0).collect();
            on_choices(k, op, |row, token| match logits[row * op.vocab..][..op.vocab].get(token as usize) {
                Some(chosen) if greedy[row] => {
                    let of_row = &logits[row * op.vocab..][..op.vocab];
                    of_row.iter().rposition(|x| x == chosen).map_or(token, |last| last as u32)
                }
                _ => token,
            })
        };
        "a token is written in 8 bits" => |k, op| {
            on_choices(k, op, |_, token| if token == NO_TOKEN { token } else { token & 0xff })
        };
        "the choice goes one place on" => |k, op| on_others(k, op, |_, row| {
            row.next = row.ring + (row.next - row.ring + 1) % row.ring_len;
        });
        "of several rows the last is not written" => |k, op| {
            let (before, settings, live) = (k.words(op.tokens)?, k.words(op.settings)?, live(k, &op)?);
            k.run(op)?;
            let mut tokens = k.words(op.tokens)?;
            if live > 1 {
                let last = SampleRow::from_words(&settings.as_chunks().0[live - 1]).next as usize;
                tokens[last] = before[last];
            }
            k.put_words(op.tokens, &tokens)
        };
        "the choices are not written side by side" => |k, op| {
            let before = k.words(op.choices)?;
            k.run(op)?;
            k.put_words(op.choices, &before)
        };
        "side by side the choices are in reverse order" => |k, op| {
            k.run(op)?;
            on_side_by_side(k, &op, <[u32]>::reverse)
        };
        "side by side all choices are that of the first row" => |k, op| {
            k.run(op)?;
            on_side_by_side(k, &op, |choices| choices.fill(choices.first().copied().unwrap_or(0)))
        };
        "side by side is what stood in the ring before" => |k, op| {
            let (tokens, settings) = (k.words(op.tokens)?, k.words(op.settings)?);
            k.run(op)?;
            on_side_by_side(k, &op, |choices| {
                for (choice, words) in choices.iter_mut().zip(settings.as_chunks().0) {
                    *choice = tokens[SampleRow::from_words(words).next as usize];
                }
            })
        };
        "side by side, no choice is the first token" => |k, op| {
            k.run(op)?;
            on_side_by_side(k, &op, |choices| {
                choices.iter_mut().filter(|choice| **choice == NO_TOKEN).for_each(|choice| *choice = 0);
            })
        };
        "side by side, a token is written in 8 bits" => |k, op| {
            k.run(op)?;
            on_side_by_side(k, &op, |choices| {
                choices.iter_mut().filter(|choice| **choice != NO_TOKEN).for_each(|choice| *choice &= 0xff);
            })
        };
        "side by side a row that is dead has no choice either" => |k, op| {
            k.run(op)?;
            let (mut choices, live) = (k.words(op.choices)?, live(k, &op)?);
            choices[live..].fill(NO_TOKEN);
            k.put_words(op.choices, &choices)
        };
        "side by side one place behind the live rows is written" => |k, op| {
            k.run(op)?;
            let (mut choices, live) = (k.words(op.choices)?, live(k, &op)?);
            choices.iter_mut().skip(live).take(1).for_each(|choice| *choice = 0);
            k.put_words(op.choices, &choices)
        };
        "more than 16 rows are cut off" => |k, op| {
            let words = k.words(op.live)?;
            k.put_words(op.live, &[words[0].min(16)])?;
            let done = k.run(op);
            k.put_words(op.live, &words)?;
            done
        };
        "the penalised logits are written back" => |k, op| {
            k.run(op)?;
            k.edit(op.logits, |i, x| if i == 0 { x * 0.9 } else { x })
        };
    }
};
