"""report.html in headless Chromium: what is drawn, sorted, filtered, themed.

Needs Debian's packages chromium and chromium-driver, or equal commands on PATH.
"""

import shutil
import time

import log_folders
import pytest

from lab.report import __main__ as command
from lab.report import curve_data

CHROMIUM = shutil.which('chromium') or shutil.which('google-chrome')
DRIVER = shutil.which('chromedriver')
if not (CHROMIUM and DRIVER):
  pytest.skip('chromium or chromedriver is missing', allow_module_level=True)
webdriver = pytest.importorskip('selenium.webdriver')
# Neither markup nor its length may break the page.
HOSTILE = '<b>a<img src=x onerror=alert(1)>' + 'long' * 40
ARGUMENTS = (
  '--headless=new',
  '--no-sandbox',
  '--disable-gpu',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
  '--no-first-run',
)


@pytest.fixture(scope='module')
def path(tmp_path_factory):
  """A page on three submissions, one of which has a hostile name."""
  folder = tmp_path_factory.mktemp('page')
  log_folders.small_group(folder / 'logs')
  rows = [(500, 10.0, 0.2), (1500, 300.0, 0.1)]
  log_folders.write_trial(folder / 'logs', HOSTILE, 'criteo1tb', rows)
  output = folder / 'out'
  command.main([str(folder / 'logs'), '--output', str(output)])
  return output / 'report.html'


@pytest.fixture(scope='module')
def browser():
  options = webdriver.ChromeOptions()
  options.binary_location = CHROMIUM
  for argument in ARGUMENTS:
    options.add_argument(argument)
  options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
  service = webdriver.ChromeService(executable_path=DRIVER)
  driver = webdriver.Chrome(options=options, service=service)
  yield driver
  driver.quit()


def _open(browser, path, width=1280, theme='light'):
  browser.execute_cdp_cmd(
    'Emulation.setEmulatedMedia',
    {'features': [{'name': 'prefers-color-scheme', 'value': theme}]},
  )
  metrics = {'width': width, 'height': 900, 'deviceScaleFactor': 1}
  browser.execute_cdp_cmd(
    'Emulation.setDeviceMetricsOverride', metrics | {'mobile': width < 600}
  )
  browser.asked_width = width
  browser.get(f'file://{path}')
  _wait(browser, 'return !document.querySelector(".chart:not([data-drawn])")')


def _wait(browser, script):
  # Charts are drawn one after another; a minute is for a loaded machine.
  end = time.monotonic() + 60
  while not browser.execute_script(script):
    assert time.monotonic() < end, script
    time.sleep(0.05)


@pytest.fixture(params=[(1280, 'light'), (390, 'dark')], ids=['wide', 'narrow'])
def page(browser, path, request):
  """The opened page; afterwards, nothing may be on the console."""
  _open(browser, path, *request.param)
  yield browser
  assert browser.get_log('browser') == []


def _all(browser, selector):
  return browser.find_elements('css selector', selector)


def _column(browser, table, index):
  rows = _all(browser, f'#table-{table} tbody tr:not([hidden])')
  cells = [row.find_elements('css selector', 'td')[index] for row in rows]
  return [cell.get_property('textContent') for cell in cells]


def _count(browser, chart, selector):
  return len(_all(browser, f'.chart[data-figure="{chart}"] {selector}'))


def test_draws_all_charts(page):
  # Profiles, heat map, and for each of two workloads bars and two curves.
  assert len(_all(page, '.chart')) == len(_all(page, '.chart svg.main-svg')) / 3
  assert len(_all(page, '.chart')) == 2 + 3 * 2
  assert _count(page, 0, '.scatterlayer .trace path.js-line') == 3
  assert _count(page, 1, '.heatmaplayer image') == 1
  cells = [e.text for e in _all(page, '[data-figure="1"] .heatmap-label')]
  assert sorted(filter(None, cells)) == ['110', '200', '220', '300', '600']
  assert _count(page, 2, '.barlayer .trace') == 3
  names = [e.get_property('textContent') for e in _all(page, '.ytick text')]
  assert curve_data.labels([HOSTILE])[HOSTILE] in names
  # Three studies of two submissions, one of the third; the target.
  assert _count(page, 4, '.scatterlayer .trace path.js-line') == 7
  assert _count(page, 4, '.shapelayer path') == 1


def test_loads_nothing(page):
  script = 'return performance.getEntriesByType("resource").map((r) => r.name)'
  # The empty icon keeps the browser from asking for one.
  assert [
    name for name in page.execute_script(script) if name != 'data:,'
  ] == []
  external = _all(page, '[src], link[href]:not([href^="data:"])')
  assert [e.get_attribute('outerHTML') for e in external] == []


def test_fits_its_window(page):
  width = page.execute_script('return document.documentElement.scrollWidth')
  # A phone's window grows with what does not fit: compare with what was asked.
  assert width <= page.asked_width
  for chart in _all(page, 'figure:not(.scrolls) .chart'):
    assert chart.size['width'] >= 300
    inner = chart.find_element('css selector', 'svg.main-svg')
    assert abs(inner.size['width'] - chart.size['width']) <= 1


def test_sorts_a_table_with_missing_values_last(page):
  header = _all(page, '#table-seconds th button')[2]
  assert header.text == 'wmt'
  assert _column(page, 'seconds', 2) == ['200', '600', '–']
  page.execute_script('arguments[0].click()', header)
  assert _column(page, 'seconds', 2) == ['200', '600', '–']
  page.execute_script('arguments[0].click()', header)
  assert _column(page, 'seconds', 2) == ['600', '200', '–']
  names = _column(page, 'seconds', 0)
  assert names == ['slow', 'fast', HOSTILE]
  (sorted_by,) = _all(page, '#table-seconds th[aria-sort="descending"]')
  assert sorted_by.text.startswith('wmt')
  # Numbers by value: as text, 12000 comes before 1500.
  button = _all(page, '#table-time_to_target th button')[5]
  assert button.text == 'steps'
  page.execute_script('arguments[0].click()', button)
  steps = ['1,000', '1,000', '1,500', '12,000', '12,000']
  assert _column(page, 'time_to_target', 5) == steps


def test_filters_tables_and_charts_by_submission(page):
  cells = _count(page, 1, '.heatmap-label')
  box = page.find_element('css selector', '#filter input[value="slow"]')
  page.execute_script('arguments[0].click()', box)
  assert 'slow' not in _column(page, 'scores', 0)
  _wait(
    page,
    'return [0, 2].every((i) => document.querySelectorAll('
    '`[data-figure="${i}"] .trace`).length === 2)',
  )
  _wait(
    page,
    'return document.querySelectorAll('
    '`[data-figure="1"] .heatmap-label`).length < before'.replace(
      'before', str(cells)
    ),
  )
  page.execute_script('document.getElementById("all").click()')
  assert 'slow' in _column(page, 'scores', 0)
  _wait(
    page,
    'return document.querySelectorAll(`[data-figure="0"] .trace`).length === 3',
  )


def _lightness(browser, selector, name):
  script = (
    'return getComputedStyle(document.querySelector(arguments[0]))'
    '[arguments[1]].match(/[0-9.]+/g).slice(0, 3).map(Number)'
  )
  return sum(browser.execute_script(script, selector, name)) / 3


def test_theme_follows_the_system_and_the_button(page):
  def is_dark():
    return (
      _lightness(page, 'body', 'backgroundColor') < 60
      and _lightness(page, 'td', 'color') > 180
      and _lightness(page, '.chart .xtick text', 'fill') > 120
    )

  def is_light():
    return (
      _lightness(page, 'body', 'backgroundColor') > 200
      and _lightness(page, 'td', 'color') < 60
      and _lightness(page, '.chart .xtick text', 'fill') < 120
    )

  narrow = page.execute_script('return window.innerWidth') < 600
  before, after = (is_dark, is_light) if narrow else (is_light, is_dark)
  assert before()
  page.execute_script('document.getElementById("theme").click()')
  assert after()


def test_hovering_shows_values(browser, path):
  _open(browser, path)
  bar = _all(browser, '[data-figure="2"] .barlayer .point path')[0]
  browser.execute_script('arguments[0].scrollIntoView({block: "center"})', bar)
  webdriver.ActionChains(browser).move_to_element(bar).perform()
  _wait(
    browser,
    'return !!document.querySelector(`[data-figure="2"] .hovertext`)',
  )
  text = _all(browser, '[data-figure="2"] .hovertext')[0]
  assert 'fast: 0.09' in text.get_property('textContent')
