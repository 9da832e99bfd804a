//! Calendar dates for `strftime_now`, which some chat templates call for today's date.
//!
//! Dates are UTC, so that a template renders the same on every machine. No time zones, and English only.

use std::time::{SystemTime, UNIX_EPOCH};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = [
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
];

/// Seconds since 1970-01-01 00:00 UTC by the system's clock.
pub(super) fn now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs() as i64)
}

/// Year, month (1..=12) and day (1..=31) of a number of days since 1970-01-01, in the proleptic Gregorian calendar.
///
/// Years are counted from 1 March, so that the leap day is the last of its year; 146097 days make 400 years.
fn civil(days: i64) -> (i64, usize, i64) {
    let shifted = days + 719_468; // days since 0000-03-01
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 {
        march_month + 3
    } else {
        march_month - 9
    };
    (year_of_era + era * 400 + i64::from(month <= 2), month as usize, day)
}

/// A moment, broken down.
struct Moment {
    seconds: i64,
    year: i64,
    month: usize,
    day: i64,
    hour: i64,
    minute: i64,
    second: i64,
    /// 0 is Sunday.
    weekday: i64,
    /// From 1.
    day_of_year: i64,
}

impl Moment {
    fn new(seconds: i64) -> Self {
        let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
        let (year, month, day) = civil(days);
        Self {
            seconds,
            year,
            month,
            day,
            hour: second / 3600,
            minute: second / 60 % 60,
            second: second % 60,
            weekday: (days + 4).rem_euclid(7),
            day_of_year: (1..=366).find(|n| civil(days - n).0 < year).unwrap_or(1),
        }
    }

    /// Year and week of ISO 8601: weeks start on Monday and belong to the year of their Thursday.
    fn iso_week(&self) -> (i64, i64) {
        let days = self.seconds.div_euclid(86_400);
        let thursday = days - (self.weekday + 6) % 7 + 3;
        let year = civil(thursday).0;
        let first = (1..=366).find(|n| civil(thursday - n).0 < year).unwrap_or(1);
        (year, (first - 1) / 7 + 1)
    }

    /// A number with the default width and fill of its format letter.
    fn number(&self, letter: char) -> Option<(i64, usize, char)> {
        let hour12 = (self.hour + 11) % 12 + 1;
        Some(match letter {
            'Y' => (self.year, 0, '0'),
            'G' => (self.iso_week().0, 0, '0'),
            'C' => (self.year.div_euclid(100), 2, '0'),
            'y' => (self.year.rem_euclid(100), 2, '0'),
            'g' => (self.iso_week().0.rem_euclid(100), 2, '0'),
            'm' => (self.month as i64, 2, '0'),
            'd' => (self.day, 2, '0'),
            'e' => (self.day, 2, ' '),
            'H' => (self.hour, 2, '0'),
            'k' => (self.hour, 2, ' '),
            'I' => (hour12, 2, '0'),
            'l' => (hour12, 2, ' '),
            'M' => (self.minute, 2, '0'),
            'S' => (self.second, 2, '0'),
            'f' => (0, 6, '0'),
            'j' => (self.day_of_year, 3, '0'),
            'U' => ((self.day_of_year + 6 - self.weekday) / 7, 2, '0'),
            'W' => ((self.day_of_year + 6 - (self.weekday + 6) % 7) / 7, 2, '0'),
            'V' => (self.iso_week().1, 2, '0'),
            'u' => ((self.weekday + 6) % 7 + 1, 1, '0'),
            'w' => (self.weekday, 1, '0'),
            's' => (self.seconds, 0, '0'),
            _ => return None,
        })
    }

    fn text(&self, letter: char) -> Option<String> {
        let (weekday, month) = (DAYS[self.weekday as usize], MONTHS[self.month - 1]);
        let half = if self.hour < 12 { "AM" } else { "PM" };
        let whole = |format| strftime(format, self.seconds).unwrap_or_default();
        Some(match letter {
            'A' => weekday.to_owned(),
            'a' => weekday[..3].to_owned(),
            'B' => month.to_owned(),
            'b' | 'h' => month[..3].to_owned(),
            'p' => half.to_owned(),
            'P' => half.to_lowercase(),
            'c' => whole("%a %b %e %H:%M:%S %Y"),
            'D' | 'x' => whole("%m/%d/%y"),
            'F' => whole("%Y-%m-%d"),
            'R' => whole("%H:%M"),
            'r' => whole("%I:%M:%S %p"),
            'T' | 'X' => whole("%H:%M:%S"),
            // Python's `datetime.now()` in templates has no time zone.
            'Z' | 'z' => String::new(),
            'n' => "\n".to_owned(),
            't' => "\t".to_owned(),
            '%' => "%".to_owned(),
            _ => return None,
        })
    }
}

/// Formats `seconds` since 1970 (UTC) with the format letters of Python's `strftime` on Linux in the C locale. Unknown
/// letters are copied.
///
/// # Errors
///
/// Widths (`%10d`) and the letters `E` and `O` are not supported.
pub(super) fn strftime(format: &str, seconds: i64) -> Result<String, String> {
    let moment = Moment::new(seconds);
    let mut out = String::new();
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        let field = &rest[at + 1..];
        let flag = field.chars().next().filter(|flag| "-_0^".contains(*flag));
        let body = &field[usize::from(flag.is_some())..];
        let Some(letter) = body.chars().next() else {
            out.push_str(&rest[at..]);
            return Ok(out);
        };
        if letter.is_ascii_digit() || matches!(letter, 'E' | 'O' | '#' | '+') {
            return Err(format!(
                "strftime_now: {letter:?} after % is not supported (in {format:?})"
            ));
        }
        rest = &body[letter.len_utf8()..];
        if let Some((number, width, fill)) = moment.number(letter) {
            let fill = match flag {
                Some('_') => ' ',
                Some('0') => '0',
                _ => fill,
            };
            let digits = number.to_string();
            let missing = if flag == Some('-') {
                0
            } else {
                width.saturating_sub(digits.len())
            };
            out.extend(std::iter::repeat_n(fill, missing));
            out.push_str(&digits);
        } else if let Some(text) = moment.text(letter) {
            out.push_str(&if flag == Some('^') { text.to_uppercase() } else { text });
        } else {
            out.push('%');
            out.extend(flag);
            out.push(letter);
        }
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected strings are Python's `datetime.fromtimestamp(s, timezone.utc).strftime(f)`.
    #[test]
    fn agrees_with_python() {
        for (seconds, format, expected) in CASES {
            assert_eq!(
                strftime(format, *seconds).as_deref(),
                Ok(*expected),
                "{seconds} {format}"
            );
        }
    }

    #[test]
    fn widths_are_refused_and_unknown_letters_stay() {
        assert!(strftime("%10d", 0).is_err());
        assert!(strftime("%Ey", 0).is_err());
        assert_eq!(strftime("%Q 50%", 0).as_deref(), Ok("%Q 50%"));
    }

    const CASES: &[(i64, &str, &str)] = &[
        (0, "%d %b %Y", "01 Jan 1970"),
        (951_782_400, "%d %B %Y %A %j", "29 February 2000 Tuesday 060"),
        (
            1_735_689_599,
            "%Y-%m-%d %H:%M:%S %a %j %p %I %y",
            "2024-12-31 23:59:59 Tue 366 PM 11 24",
        ),
        (1_741_305_600, "%-d/%-m %e|%%|%F %T", "7/3  7|%|2025-03-07 00:00:00"),
        (4_107_542_399, "%d %b %Y", "28 Feb 2100"),
        (4_107_542_400, "%d %b %Y", "01 Mar 2100"),
        (-1, "%d %b %Y %H", "31 Dec 1969 23"),
        (
            0,
            "%G-W%V-%u %U %W %w %C %g %j|%c|%D %R %r",
            "1970-W01-4 00 00 4 19 70 001|Thu Jan  1 00:00:00 1970|01/01/70 00:00 12:00:00 AM",
        ),
        (
            951_782_400,
            "%G-W%V-%u %U %W %w %C %g %j|%c|%D %R %r",
            "2000-W09-2 09 09 2 20 00 060|Tue Feb 29 00:00:00 2000|02/29/00 00:00 12:00:00 AM",
        ),
        (
            1_735_689_599,
            "%G-W%V-%u %U %W %w %C %g %j|%c|%D %R %r",
            "2025-W01-2 52 53 2 20 25 366|Tue Dec 31 23:59:59 2024|12/31/24 23:59 11:59:59 PM",
        ),
        (
            1_741_305_600,
            "%G-W%V-%u %U %W %w %C %g %j|%c|%D %R %r",
            "2025-W10-5 09 09 5 20 25 066|Fri Mar  7 00:00:00 2025|03/07/25 00:00 12:00:00 AM",
        ),
        (
            4_107_542_399,
            "%G-W%V-%u %U %W %w %C %g %j|%c|%D %R %r",
            "2100-W08-7 09 08 0 21 00 059|Sun Feb 28 23:59:59 2100|02/28/00 23:59 11:59:59 PM",
        ),
        (
            -1,
            "%G-W%V-%u %U %W %w %C %g %j|%c|%D %R %r",
            "1970-W01-3 52 52 3 19 70 365|Wed Dec 31 23:59:59 1969|12/31/69 23:59 11:59:59 PM",
        ),
        (
            1_609_459_199,
            "%G-W%V-%u %U %W %w %C %g %j|%c|%D %R %r",
            "2020-W53-4 52 52 4 20 20 366|Thu Dec 31 23:59:59 2020|12/31/20 23:59 11:59:59 PM",
        ),
        (
            1_230_768_000,
            "%G-W%V-%u %U %W %w %C %g %j|%c|%D %R %r",
            "2009-W01-4 00 00 4 20 09 001|Thu Jan  1 00:00:00 2009|01/01/09 00:00 12:00:00 AM",
        ),
        (
            1_262_304_000,
            "%G-W%V-%u %U %W %w %C %g %j|%c|%D %R %r",
            "2009-W53-5 00 00 5 20 09 001|Fri Jan  1 00:00:00 2010|01/01/10 00:00 12:00:00 AM",
        ),
        (
            1_104_537_600,
            "%G-W%V-%u %U %W %w %C %g %j|%c|%D %R %r",
            "2004-W53-6 00 00 6 20 04 001|Sat Jan  1 00:00:00 2005|01/01/05 00:00 12:00:00 AM",
        ),
        (
            1_672_531_200,
            "%G-W%V-%u %U %W %w %C %g %j|%c|%D %R %r",
            "2022-W52-7 01 00 0 20 22 001|Sun Jan  1 00:00:00 2023|01/01/23 00:00 12:00:00 AM",
        ),
    ];
}
