"""The pages, made on the server; they work without JavaScript. What changes something answers with a redirect."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated
from uuid import UUID, uuid4

from fastapi import APIRouter, Depends, Form, Request, UploadFile
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from fastapi.templating import Jinja2Templates
from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.exceptions import HTTPException

from queue_kit.contrib.files import InvalidFile, create_or_update_file
from queue_kit.contrib.files.starlette import send_transformed_image
from queue_kit.contrib.sessions import Session
from queue_kit.contrib.sessions.cookies import end_session, start_session
from shop.login import Login, current_login, current_staff, find_login, hash_password, is_password
from shop.models import Customer, Order, Product, euros
from shop.orders import SoldOut, place_order

IMAGES = ["image/jpeg", "image/png", "image/webp", "image/avif"]

router = APIRouter(default_response_class=HTMLResponse)
templates = Jinja2Templates(Path(__file__).parent / "templates")
templates.env.filters["euros"] = euros


async def get_session(request: Request) -> AsyncIterator[AsyncSession]:
    """The database session of a request that changes something."""
    async with AsyncSession(request.app.state.engine) as session:
        yield session


def reader(request: Request) -> AsyncSession:
    """A session that only reads: on SQLite it waits for no writer."""
    return AsyncSession(request.app.state.engine.execution_options(queue_kit_readonly=True))


async def get_reader(request: Request) -> AsyncIterator[AsyncSession]:
    """The database session of a request that only reads."""
    async with reader(request) as session:
        yield session


Writing = Annotated[AsyncSession, Depends(get_session)]
Reading = Annotated[AsyncSession, Depends(get_reader)]
Current = Annotated[Session[Login], Depends(current_login)]
Staff = Annotated[Session[Login], Depends(current_staff)]


async def page(request: Request, name: str, status: int = 200, **shown: object) -> Response:
    """A page of a template; who is logged in is known to all of them."""
    login = await find_login(request)
    return templates.TemplateResponse(request, name, {"login": login and login.data, **shown}, status_code=status)


async def show_problem(request: Request, error: Exception) -> Response:
    """What went wrong, as a page; somebody who must log in first is led there."""
    if not isinstance(error, HTTPException):
        return await page(request, "problem.html", 422, problem="This form cannot be read.")
    if error.status_code == 303:
        return Response(status_code=303, headers=error.headers)
    return await page(request, "problem.html", error.status_code, problem=error.detail)


@router.get("/")
async def show_products(request: Request, session: Reading, problem: str = "") -> Response:
    """All products, each with a form of its own. Its key makes one order of it, however often it is sent."""
    products = (await session.scalars(select(Product).order_by(Product.id))).all()
    return await page(request, "products.html", products=products, key=uuid4, problem=problem)


@router.post("/orders")
async def order(
    session: Writing,
    login: Current,
    product_id: Annotated[int, Form()],
    quantity: Annotated[int, Form(ge=1, le=100)],
    key: Annotated[UUID, Form()],
) -> Response:
    """Place an order."""
    try:
        order_id = await place_order(session, key, login.data.customer_id, product_id, quantity)
    except SoldOut:
        return RedirectResponse("/?problem=sold-out", 303)
    return RedirectResponse(f"/orders/{order_id}", 303)


@router.get("/orders")
async def show_orders(request: Request, session: Reading, login: Current) -> Response:
    """The customer's own orders."""
    own = select(Order).where(Order.customer_id == login.data.customer_id).order_by(Order.id.desc()).limit(50)
    return await page(request, "orders.html", orders=(await session.scalars(own)).all())


@router.get("/orders/{order_id}")
async def show_order(request: Request, session: Reading, login: Current, order_id: int) -> Response:
    """One of them; until it is confirmed the page reloads itself."""
    found = await session.get(Order, order_id)
    if found is None or found.customer_id != login.data.customer_id:
        raise HTTPException(404, "There is no such order.")
    return await page(request, "order.html", order=found)


@router.get("/products/{product_id}/image")
async def show_image(request: Request, product_id: int, w: int = 640) -> Response:
    """A product's image, as small as it is shown. While it is sent, no connection is held."""
    async with reader(request) as session:
        product = await session.get(Product, product_id)
    if product is None or product.image is None:
        raise HTTPException(404, "There is no such image.")
    state = request.app.state
    return await send_transformed_image(request, state.engine, state.store, product.image, width=max(w, 1))


@router.post("/products/{product_id}/image")
async def upload_image(request: Request, session: Writing, _: Staff, product_id: int, image: UploadFile) -> Response:
    """Give a product an image, or another one: what the old one took goes with the cleanup."""
    async with reader(request) as reading:  # and ends before the upload begins
        product = await reading.get(Product, product_id)
    if product is None:
        raise HTTPException(404, "There is no such product.")
    try:
        file = await create_or_update_file(
            session,
            request.app.state.store,
            file_id=product.image_id,
            name=product.name,
            source=image,
            allowed_content_types=IMAGES,
            schedule_placeholder_image_job=True,
        )
    except InvalidFile:
        return RedirectResponse("/?problem=no-image", 303)
    await session.execute(update(Product).where(Product.id == product_id).values(image_id=file.id))
    await session.commit()
    return RedirectResponse("/", 303)


@router.get("/log-in")
async def show_log_in(request: Request) -> Response:
    """The form with which somebody logs in or signs up."""
    return await page(request, "log_in.html", problem="")


Email = Annotated[str, Form(pattern=r"^[^@\s]+@[^@\s]+$", max_length=200)]
Password = Annotated[str, Form(min_length=8, max_length=200)]


@router.post("/log-in")
async def log_in(request: Request, email: Email, password: Password) -> Response:
    """Log in."""
    async with reader(request) as session:  # and hold no connection during what is slow on purpose
        customer = await session.scalar(select(Customer).where(Customer.email == email))
    matches = await is_password(password, customer.password if customer else None)
    if customer is None or not matches:
        return await page(request, "log_in.html", 401, problem="This address and password do not belong together.")
    logins = request.app.state.logins
    start_session(request, logins, await logins.create(request.app.state.engine, login_of(customer)))
    return RedirectResponse("/", 303)


@router.post("/sign-up")
async def sign_up(request: Request, session: Writing, email: Email, password: Password) -> Response:
    """Become a customer, and log in, in one transaction."""
    customer = Customer(email=email, password=await hash_password(password), is_staff=False)
    session.add(customer)
    try:
        await session.flush()
    except IntegrityError:
        return await page(request, "log_in.html", 409, problem="There is somebody with this address.")
    logins = request.app.state.logins
    pair = await logins.create(session, login_of(customer))
    await session.commit()
    start_session(request, logins, pair)
    return RedirectResponse("/", 303)


def login_of(customer: Customer) -> Login:
    """What a session keeps of a customer."""
    return Login(customer.id, customer.email, customer.is_staff)


@router.post("/log-out")
async def log_out(request: Request, login: Current) -> Response:
    """End the session: the tokens are worth nothing from now on, wherever they are."""
    logins = request.app.state.logins
    await logins.invalidate(request.app.state.engine, login)
    end_session(request, logins)
    return RedirectResponse("/", 303)
