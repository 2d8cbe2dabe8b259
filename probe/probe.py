import sys; sys.path.insert(0,'/tmp/q11')
from nets import *
import json
n_test=int(sys.argv[1]); names=sys.argv[3:] or list(spec()); seeds=int(sys.argv[2])
x,y=D.x_test[:n_test],D.y_test[:n_test]
t_rand=(y+torch.randint(1,10,y.shape,generator=gen(3)))%10
def neg(loss,t): return lambda z,_: -loss(z,t)
def right(net,d): 
    with torch.no_grad(): return losses.correct(net(x+d),y)
out={}
for name in names:
    t0=time.time()
    st,e=train(name,seeds); tt=time.time()-t0
    mem=[n.eval() for n in st.members()]
    rows={}
    for net in mem:
        head=net[-1]
        full=D.x_test.clone().requires_grad_(); ft=D.y_test
        g,=torch.autograd.grad(CE(net(full),ft).sum(),full)
        rows.setdefault("clean",[]).append((net(D.x_test).argmax(1)==ft).float().mean().item())
        rows.setdefault("zero grad",[]).append((g.flatten(1)==0).all(1).float().mean().item())
        with torch.no_grad(): lead=losses.margin(net(D.x_test),ft).median().item()
        rows.setdefault("median lead",[]).append(lead/100)
        for eps in (.05,.1):
            b=Ball(math.inf,eps,(0,1)); R={}
            R["un10 CE"]=right(net,attacks.pgd(net,x,y,b,steps=10,loss=CE))
            R["un50 CE"]=right(net,attacks.pgd(net,x,y,b,steps=50,loss=CE))
            R["tar10 CE"]=right(net,attacks.pgd(net,x,y,b,steps=10,loss=neg(CE,t_rand)))
            R["tar50 CE"]=right(net,attacks.pgd(net,x,y,b,steps=50,loss=neg(CE,t_rand)))
            R["margin50"]=right(net,attacks.pgd(net,x,y,b,steps=50,loss=losses.margin_loss))
            R["log-odds50"]=right(net,attacks.pgd(net,x,y,b,steps=50))
            R["tar50 label"]=right(net,attacks.pgd(net,x,y,b,steps=50,loss=neg(m.mmc,t_rand)))
            R["label10"]=right(net,attacks.pgd(net,x,y,b,steps=10,loss=m.mmc))
            R["label50"]=right(net,attacks.pgd(net,x,y,b,steps=50,loss=m.mmc))
            mu=head.centres if isinstance(head,m.NearestCentre) else m.means(net[:-1](X).detach(),Y,10)
            R["feature x9"]=right(net,suite.every_target(m.towards_centre(mu.detach(),50))(net,x,y,b))
            R["AutoAttack"]=suite.autoattack(net,x,y,b,steps=25,queries=300).survivors
            R["worst"]=torch.stack(list(R.values())).all(0)
            for k,v in R.items(): rows.setdefault(f"{eps} {k}",[]).append(v.float().mean().item())
    out[name]=rows
    print(name, f"train {tt:.0f}s all {time.time()-t0:.0f}s loss", [round(v,3) for v in e.loss])
    for k,v in rows.items():
        v=[100*a for a in v]; mean=sum(v)/len(v)
        print(f"   {k:18} {mean:6.1f}  ({', '.join(f'{a:.1f}' for a in v)})", flush=True)
    json.dump(out,open(f'/tmp/q11/out_{n_test}.json','w'))
