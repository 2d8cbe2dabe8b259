"""Figures of every page, on a desktop, a phone and a dark page."""

import pytest

PHONE = {"width": 390, "height": 844}
DRAWINGS = "main :is(.adv-figure, .adv-slider) img"
SMALLEST = """async selector => {  // CSS pixels of the smallest letters in each drawing that is shown
    const shown = [...document.querySelectorAll(selector)].filter(i => i.checkVisibility());
    return Promise.all(shown.map(async image => {
        image.loading = "eager";
        await image.decode();
        const text = await (await fetch(image.currentSrc)).text();
        const scales = [...text.matchAll(/scale\\(([\\d.]+) -[\\d.]+\\)/g)].map(m => Number(m[1]));
        const points = 100 * Math.min(...scales);
        return [image.currentSrc, points * 4 / 3 * image.clientWidth / image.naturalWidth];
    }));
}"""


@pytest.mark.parametrize(("width", "least"), [(390, 11), (1280, 10)])
def test_letters_in_figures_are_large_enough(visit, width, least, record_property):
    visit.page.set_viewport_size({"width": width, "height": 900})
    sizes = dict(visit.page.evaluate(SMALLEST, DRAWINGS))
    if sizes:
        record_property(f"smallest letters in figures at {width} px", round(min(sizes.values()), 1))
    assert {name: size for name, size in sizes.items() if size < least} == {}


def test_a_phone_gets_its_own_drawings_and_they_fill_its_width(visit):
    visit.page.set_viewport_size(PHONE)
    visit.page.evaluate(SMALLEST, DRAWINGS)
    widths = visit.page.eval_on_selector_all(
        DRAWINGS, "all => all.filter(i => i.checkVisibility()).map(i => [i.alt, i.naturalWidth])"
    )
    assert [alt for alt, natural in widths if natural > 360] == []


def test_dark_pages_have_drawings_of_their_own_and_nothing_white_behind_them(visit):
    visit.page.emulate_media(color_scheme="dark")
    visit.page.wait_for_function("document.documentElement.dataset.theme === 'dark'")
    found = visit.page.evaluate(
        """async selector => {
            const shown = [...document.querySelectorAll(selector)].filter(i => i.checkVisibility());
            return Promise.all(shown.map(async image => {
                image.loading = "eager";
                await image.decode();
                const text = await (await fetch(image.currentSrc)).text();
                const style = getComputedStyle(image);
                return [image.currentSrc, text.includes("#333333"), style.backgroundColor, style.filter];
            }));
        }""",
        DRAWINGS,
    )
    assert [name for name, ink, *_ in found if ink] == []
    assert {tuple(look) for _, _, *look in found} <= {("rgba(0, 0, 0, 0)", "none")}


def test_every_drawing_keeps_its_place_before_it_has_loaded(visit):
    loose = visit.page.eval_on_selector_all(
        DRAWINGS,
        "all => all.filter(i => !i.getAttribute('width') || !i.getAttribute('height')).map(i => i.src)",
    )
    assert loose == []


def test_sliders_are_as_wide_as_their_figure_and_every_control_is_large_enough_for_a_finger(visit):
    for width in (390, 1280):
        visit.page.set_viewport_size({"width": width, "height": 900})
        sizes = visit.page.eval_on_selector_all(
            ".adv-slider",
            """all => all.flatMap(figure => {
                const wide = Math.min(figure.clientWidth, 640);
                return [...figure.querySelectorAll("input, button")].map(i => [
                    i.outerHTML.slice(0, 90), i.offsetHeight || i.parentElement.offsetHeight,
                    i.type === "range" ? i.clientWidth / wide : 1]);
            })""",
        )
        assert [(name, height) for name, height, _ in sizes if height < 43] == []
        assert [(name, share) for name, _, share in sizes if share < 0.5] == []
